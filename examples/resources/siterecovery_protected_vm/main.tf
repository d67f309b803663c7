variable "hyperv_site_id" {
  type = string
}

variable "replication_policy_id" {
  type = string
}

variable "storage_account_id" {
  type = string
}

variable "resource_group_id" {
  type = string
}

resource "siterecovery_protected_vm" "this" {
  hyperv_site_id            = var.hyperv_site_id
  replication_policy_id     = var.replication_policy_id
  vm_name                   = "web01"
  target_storage_account_id = var.storage_account_id
  target_resource_group_id  = var.resource_group_id
  target_vm_name            = "web01-dr"

  timeouts = {
    create = "8h"
  }
}
