variable "recovery_vault_id" {
  type = string
}

data "siterecovery_replication_policy" "this" {
  name              = "every-30-seconds"
  recovery_vault_id = var.recovery_vault_id
}

output "id" {
  value = data.siterecovery_replication_policy.this.id
}
