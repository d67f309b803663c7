variable "recovery_plan_id" {
  type = string
}

action "siterecovery_failback" "this" {
  config {
    recovery_plan_id = var.recovery_plan_id
    data_sync_option = "ForDownTime"
    timeout          = "8h"
  }
}
