data "siterecovery_storage_account" "this" {
  name                = "stdrreplica"
  resource_group_name = "rg-dr"
}

output "id" {
  value = data.siterecovery_storage_account.this.id
}
