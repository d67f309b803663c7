variable "recovery_vault_id" {
  type = string
}

variable "recovery_plan_id" {
  type = string
}

variable "webhook" {
  type      = string
  sensitive = true
  ephemeral = true
}

resource "siterecovery_drill_schedule" "weekly" {
  name              = "weekly"
  recovery_vault_id = var.recovery_vault_id
  recovery_plan_id  = var.recovery_plan_id

  days             = ["Sunday"]
  time             = "02:30" # UTC
  keep_for_minutes = 30

  webhooks_wo         = [var.webhook]
  webhooks_wo_version = 1
}
