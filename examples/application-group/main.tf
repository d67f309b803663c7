# An application of several virtual machines, protected as one: they share every recovery point, once in a while at rest
# through their guest agents; what leaves the host is encrypted; replicas lie in Azure Storage (or Azurite).
# The orchestrator's address and credentials come from the environment (SITERECOVERY_*).

terraform {
  required_version = ">= 1.11"

  required_providers {
    siterecovery = {
      source = "siterecovery/siterecovery"
    }
  }
}

provider "siterecovery" {}

resource "siterecovery_vault" "this" {
  name                    = "${var.prefix}-vault"
  resource_group_name     = var.resource_group_name
  location                = var.location
  encryption_key_rotation = var.key_rotation
}

# The key goes to the orchestrator and nowhere else: engines get signatures of some hours that it mints from it.
resource "siterecovery_storage_account" "replicas" {
  name                     = var.storage_account_name
  resource_group_name      = var.resource_group_name
  location                 = var.location
  account_replication_type = "LRS"
  blob_endpoint            = var.blob_endpoint
  container_name           = "replicas"
  account_key_wo           = var.account_key
  account_key_wo_version   = 1
}

resource "siterecovery_hyperv_site" "this" {
  name              = "${var.prefix}-site"
  recovery_vault_id = siterecovery_vault.this.id
}

resource "siterecovery_hyperv_host" "this" {
  name           = var.host_name
  hyperv_site_id = siterecovery_hyperv_site.this.id

  host_connection = {
    type = "local"
  }

  vm_folder      = var.vm_folder
  data_folder    = var.data_folder
  install_folder = var.install_folder
  roles          = ["source", "recovery"]

  throttle {
    bandwidth_in_megabits_per_second = var.bandwidth_in_megabits_per_second
  }
}

resource "siterecovery_replication_policy" "this" {
  name                                                 = "application"
  recovery_vault_id                                    = siterecovery_vault.this.id
  replication_interval_in_seconds                      = var.interval_in_seconds
  recovery_point_retention_in_hours                    = 4
  application_consistent_snapshot_frequency_in_minutes = 1
  encryption_enabled                                   = true
  verification_interval_in_hours                       = 24

  retention_tier {
    interval_in_minutes = 60
    duration_in_hours   = 168
  }
}

resource "siterecovery_replication_policy_association" "this" {
  name           = "application"
  hyperv_site_id = siterecovery_hyperv_site.this.id
  policy_id      = siterecovery_replication_policy.this.id

  depends_on = [siterecovery_hyperv_host.this]
}

data "siterecovery_protectable_vms" "this" {
  hyperv_site_id = siterecovery_hyperv_site.this.id
  names          = var.vm_names

  depends_on = [siterecovery_hyperv_host.this]
}

locals {
  vm_ids            = { for vm in data.siterecovery_protectable_vms.this.vms : vm.name => vm.vm_id }
  resource_group_id = provider::siterecovery::parse_id(siterecovery_vault.this.id).parent_id
}

resource "siterecovery_protected_vm" "this" {
  for_each = var.vm_names

  hyperv_site_id            = siterecovery_hyperv_site.this.id
  replication_policy_id     = siterecovery_replication_policy_association.this.policy_id
  vm_id                     = local.vm_ids[each.key]
  target_storage_account_id = siterecovery_storage_account.replicas.id
  target_resource_group_id  = local.resource_group_id
  target_vm_name            = "${each.key}-dr"
  multi_vm_group_name       = var.prefix
  resynchronize             = var.resynchronize

  timeouts = {
    create = "2h"
  }
}

resource "siterecovery_recovery_plan" "this" {
  name              = "${var.prefix}-plan"
  recovery_vault_id = siterecovery_vault.this.id
  hyperv_site_id    = siterecovery_hyperv_site.this.id

  boot_group {
    protected_vm_ids = [for vm in siterecovery_protected_vm.this : vm.id]
  }
}

resource "siterecovery_test_failover" "drill" {
  count = var.run_drill ? 1 : 0

  recovery_plan_id = siterecovery_recovery_plan.this.id
  network_type     = "NoNetworkAttachAsInput"
  cleanup_comment  = "Application drill."
}
