variable "recovery_vault_id" {
  type = string
}

resource "siterecovery_replication_policy" "this" {
  name                                               = "every-30-seconds"
  recovery_vault_id                                  = var.recovery_vault_id
  replication_interval_in_seconds                    = 30
  recovery_point_retention_in_hours                  = 4
  application_consistent_snapshot_frequency_in_hours = 0
}
