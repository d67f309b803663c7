variable "recovery_plan_id" {
  type = string
}

action "siterecovery_commit_failover" "this" {
  config {
    recovery_plan_id = var.recovery_plan_id
  }
}
