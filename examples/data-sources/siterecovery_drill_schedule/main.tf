variable "recovery_vault_id" {
  type = string
}

data "siterecovery_drill_schedule" "weekly" {
  name              = "weekly"
  recovery_vault_id = var.recovery_vault_id
}

check "last_drill" {
  assert {
    condition = contains(
      ["Passed", "PassedWithRemarks"],
      coalesce(try(data.siterecovery_drill_schedule.weekly.runs[0].verdict, null), "Passed"),
    )
    error_message = "The last scheduled drill did not pass."
  }
}
