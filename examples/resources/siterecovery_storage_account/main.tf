# Replicas in a folder that the hosts can write.
resource "siterecovery_storage_account" "folder" {
  name                     = "stdrreplica"
  resource_group_name      = "rg-dr"
  location                 = "northeurope"
  account_tier             = "Standard"
  account_replication_type = "LRS"
  folder                   = "/srv/replicas"
}

variable "account_key" {
  type      = string
  ephemeral = true
}

# Replicas in Azure Storage. The key is in neither plan nor state; a new version number hands over a new key.
resource "siterecovery_storage_account" "azure" {
  name                     = "stdrazure"
  resource_group_name      = "rg-dr"
  location                 = "northeurope"
  account_replication_type = "GRS"
  blob_endpoint            = "https://stdrazure.blob.core.windows.net"
  container_name           = "replicas"
  account_key_wo           = var.account_key
  account_key_wo_version   = 1
  stripes                  = 4
}

variable "client_secret" {
  type      = string
  ephemeral = true
}

# The same with a client of Entra ID in place of the key.
resource "siterecovery_storage_account" "client" {
  name                     = "stdrclient"
  resource_group_name      = "rg-dr"
  location                 = "northeurope"
  account_tier             = "Premium"
  account_replication_type = "ZRS"
  blob_endpoint            = "https://stdrclient.blob.core.windows.net"
  tenant_id                = "72f988bf-86f1-41af-91ab-2d7cd011db47"
  client_id                = "11111111-2222-4333-8444-555555555555"
  client_secret_wo         = var.client_secret
  client_secret_wo_version = 1
  proxy_url                = "http://proxy.example.com:3128"
}
