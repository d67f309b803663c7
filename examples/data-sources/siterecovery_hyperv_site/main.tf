variable "recovery_vault_id" {
  type = string
}

data "siterecovery_hyperv_site" "this" {
  name              = "site-oslo"
  recovery_vault_id = var.recovery_vault_id
}

output "id" {
  value = data.siterecovery_hyperv_site.this.id
}
