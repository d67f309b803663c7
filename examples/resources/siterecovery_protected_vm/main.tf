variable "hyperv_site_id" {
  type = string
}

variable "replication_policy_id" {
  type = string
}

variable "storage_account_id" {
  type = string
}

variable "premium_storage_account_id" {
  type = string
}

variable "log_storage_account_id" {
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

# A database with what belongs to it: points at one instant with its application, less bandwidth in working hours, a first
# copy that begins with a disk copy brought to the store's side.
resource "siterecovery_protected_vm" "database" {
  hyperv_site_id            = var.hyperv_site_id
  replication_policy_id     = var.replication_policy_id
  vm_name                   = "db01"
  target_storage_account_id = var.storage_account_id
  target_resource_group_id  = var.resource_group_id
  multi_vm_group_name       = "shop"
  resynchronize             = "2027-01"

  throttle {
    bandwidth_in_megabits_per_second = 50
    days                             = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    start_time                       = "08:00"
    end_time                         = "18:00"
    utc_offset                       = "+01:00"
  }

  seed {
    disk_id = "6a1f3f54-0c1e-4b3e-9d57-2f4a1f6f3a10"
    path    = "/srv/seeds/db01-data.vhdx"
  }
}

# Base disks on premium storage; the change log and the recovery points are in a standard account.
resource "siterecovery_protected_vm" "fast" {
  hyperv_site_id            = var.hyperv_site_id
  replication_policy_id     = var.replication_policy_id
  vm_name                   = "sql01"
  target_storage_account_id = var.premium_storage_account_id
  log_storage_account_id    = var.log_storage_account_id
  target_resource_group_id  = var.resource_group_id
}
