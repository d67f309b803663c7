resource "siterecovery_storage_account" "this" {
  name                     = "stdrreplica"
  resource_group_name      = "rg-dr"
  location                 = "northeurope"
  account_tier             = "Standard"
  account_replication_type = "LRS"
  folder                   = "/srv/replicas"
}
