# Virtual machines of one host, to be failed over to another host and back: see docs/guides/failover.md.
# Both hosts are this machine here, each with an engine of its own; with `type = "ssh"` they are two machines.
# The orchestrator's address and credentials come from the environment (SITERECOVERY_*).

terraform {
  required_version = ">= 1.8"

  required_providers {
    siterecovery = {
      source = "siterecovery/siterecovery"
    }
  }
}

provider "siterecovery" {}

resource "siterecovery_vault" "this" {
  name                = "${var.prefix}-vault"
  resource_group_name = var.resource_group_name
  location            = var.location
}

# Replicas lie in this folder: journal, base images and recovery points.
resource "siterecovery_storage_account" "replicas" {
  name                = "${replace(var.prefix, "-", "")}replicas"
  resource_group_name = var.resource_group_name
  location            = var.location
  folder              = var.replica_folder
}

resource "siterecovery_virtual_network" "recovery" {
  name                = "${var.prefix}-recovery"
  resource_group_name = var.resource_group_name
  location            = var.location
  address_space       = ["10.80.0.0/16"]

  subnet {
    name           = "servers"
    address_prefix = "10.80.1.0/24"
  }
}

resource "siterecovery_hyperv_site" "this" {
  name              = "${var.prefix}-site"
  recovery_vault_id = siterecovery_vault.this.id
}

# Runs the virtual machines and replicates them.
resource "siterecovery_hyperv_host" "source" {
  name           = "source"
  hyperv_site_id = siterecovery_hyperv_site.this.id

  host_connection = {
    type = "local"
  }

  vm_folder      = var.vm_folder
  data_folder    = "${var.source_folder}/data"
  install_folder = "${var.source_folder}/bin"
  roles          = ["source"]
}

# Runs their recovered copies: it has to be there when the source is not.
resource "siterecovery_hyperv_host" "recovery" {
  name           = "recovery"
  hyperv_site_id = siterecovery_hyperv_site.this.id

  host_connection = {
    type = "local"
  }

  data_folder    = "${var.recovery_folder}/data"
  install_folder = "${var.recovery_folder}/bin"
  roles          = ["recovery"]

  recovery_generations = var.recovery_generations
}

resource "siterecovery_replication_policy" "this" {
  name                              = "${var.prefix}-policy"
  recovery_vault_id                 = siterecovery_vault.this.id
  replication_interval_in_seconds   = var.replication_interval_in_seconds
  recovery_point_retention_in_hours = 4
}

# The site's protection container comes with its first host, so this waits for the host.
resource "siterecovery_replication_policy_association" "this" {
  name           = "${var.prefix}-policy"
  hyperv_site_id = siterecovery_hyperv_site.this.id
  policy_id      = siterecovery_replication_policy.this.id

  depends_on = [siterecovery_hyperv_host.source]
}

# What the host reports. Waits for its first report.
data "siterecovery_protectable_vms" "this" {
  hyperv_site_id = siterecovery_hyperv_site.this.id
  names          = toset(flatten(var.boot_order))

  depends_on = [siterecovery_hyperv_host.source]
}

locals {
  vm_ids            = { for vm in data.siterecovery_protectable_vms.this.vms : vm.name => vm.vm_id }
  resource_group_id = provider::siterecovery::parse_id(siterecovery_vault.this.id).parent_id
}

# Returns when the first copy of every disk is whole.
resource "siterecovery_protected_vm" "this" {
  for_each = toset(flatten(var.boot_order))

  hyperv_site_id            = siterecovery_hyperv_site.this.id
  replication_policy_id     = siterecovery_replication_policy_association.this.policy_id
  vm_id                     = local.vm_ids[each.key]
  target_storage_account_id = siterecovery_storage_account.replicas.id
  target_resource_group_id  = local.resource_group_id
  target_network_id         = siterecovery_virtual_network.recovery.id
  target_subnet_name        = "servers"
  target_vm_name            = "${each.key}-dr"

  timeouts = {
    create = "2h"
  }
}

resource "siterecovery_recovery_plan" "this" {
  name              = "${var.prefix}-plan"
  recovery_vault_id = siterecovery_vault.this.id
  hyperv_site_id    = siterecovery_hyperv_site.this.id

  dynamic "boot_group" {
    for_each = var.boot_order

    content {
      protected_vm_ids = [for name in boot_group.value : siterecovery_protected_vm.this[name].id]
    }
  }
}
