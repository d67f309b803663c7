# Replicas in Azure Storage, as everything around them is declared: vault, account with a write-only key, a policy with
# encryption, graded retention and immutability, health as a check. README.md beside this file runs it against Azurite.
# The orchestrator's address and credentials come from the environment (SITERECOVERY_*).

terraform {
  required_version = ">= 1.11" # write-only arguments

  required_providers {
    siterecovery = {
      source = "siterecovery/siterecovery"
    }
  }
}

provider "siterecovery" {}

variable "resource_group_name" {
  description = "Resource group of all that is made."
  type        = string
  default     = "rg-azure-storage"
}

variable "location" {
  description = "Region of vault and account."
  type        = string
  default     = "northeurope"
}

variable "blob_endpoint" {
  description = "Blob endpoint of the account, such as https://account.blob.core.windows.net."
  type        = string
}

variable "account_key" {
  description = "Key of the account. It goes to the orchestrator, and is kept in neither plan nor state."
  type        = string
  ephemeral   = true
}

variable "account_key_version" {
  description = "Any number; another one hands over the key of now."
  type        = number
  default     = 1
}

variable "key_rotation" {
  description = "Any text; another one gives the vault a new encryption key."
  type        = string
  default     = "first"
}

resource "siterecovery_vault" "this" {
  name                    = "azure-storage-vault"
  resource_group_name     = var.resource_group_name
  location                = var.location
  encryption_key_rotation = var.key_rotation
}

resource "siterecovery_storage_account" "this" {
  name                     = "azurestoragereplicas"
  resource_group_name      = var.resource_group_name
  location                 = var.location
  account_replication_type = "GRS"
  blob_endpoint            = var.blob_endpoint
  account_key_wo           = var.account_key
  account_key_wo_version   = var.account_key_version
  stripes                  = 2
}

resource "siterecovery_hyperv_site" "this" {
  name              = "azure-storage-site"
  recovery_vault_id = siterecovery_vault.this.id
}

# Points of a day, one an hour for a week, one a day for a year; for two days nobody can delete a point.
resource "siterecovery_replication_policy" "this" {
  name                                               = "kept-for-a-year"
  recovery_vault_id                                  = siterecovery_vault.this.id
  storage_account_id                                 = siterecovery_storage_account.this.id
  replication_interval_in_seconds                    = 30
  recovery_point_retention_in_hours                  = 24
  application_consistent_snapshot_frequency_in_hours = 4
  immutability_in_hours                              = 48
  verification_interval_in_hours                     = 24
  encryption_enabled                                 = true

  retention_tier {
    interval_in_minutes = 60
    duration_in_hours   = 168
  }

  retention_tier {
    interval_in_minutes = 1440
    duration_in_hours   = 8760
  }

  comparison_window {
    start_time = "18:30"
    end_time   = "06:00"
    utc_offset = "+01:00"
  }
}

data "siterecovery_replication_health" "this" {
  recovery_vault_id = siterecovery_vault.this.id
}

check "replication_is_well" {
  assert {
    condition     = data.siterecovery_replication_health.this.health == "Normal"
    error_message = "At least one VM is not replicated as it should be: see siterecovery item list."
  }
}

output "vault_id" {
  value = siterecovery_vault.this.id
}

output "hyperv_site_id" {
  value = siterecovery_hyperv_site.this.id
}

output "storage_account_id" {
  value = siterecovery_storage_account.this.id
}

output "encryption_key_id" {
  value = siterecovery_vault.this.encryption_key_id
}
