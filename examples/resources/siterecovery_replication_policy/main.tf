variable "recovery_vault_id" {
  type = string
}

resource "siterecovery_replication_policy" "this" {
  name                                               = "every-30-seconds"
  recovery_vault_id                                  = var.recovery_vault_id
  replication_interval_in_seconds                    = 30
  recovery_point_retention_in_hours                  = 4
  application_consistent_snapshot_frequency_in_hours = 1
}

# All points of a day, then one an hour for a week, one a day for a year; nobody can delete a point within three days.
resource "siterecovery_replication_policy" "long" {
  name                              = "kept-for-a-year"
  recovery_vault_id                 = var.recovery_vault_id
  replication_interval_in_seconds   = 300
  recovery_point_retention_in_hours = 24
  immutability_in_hours             = 72
  encryption_enabled                = true
  verification_interval_in_hours    = 24
  log_quota_in_percent              = 25

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

  comparison_window {
    days = ["Saturday", "Sunday"]
  }
}
