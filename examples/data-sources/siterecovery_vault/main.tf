data "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
}

output "id" {
  value = data.siterecovery_vault.this.id
}
