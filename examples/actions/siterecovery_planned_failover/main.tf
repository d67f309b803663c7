variable "recovery_plan_id" {
  type = string
}

action "siterecovery_planned_failover" "this" {
  config {
    recovery_plan_id = var.recovery_plan_id
    timeout          = "2h"
  }
}
