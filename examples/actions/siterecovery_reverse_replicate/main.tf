variable "recovery_plan_id" {
  type = string
}

action "siterecovery_reverse_replicate" "this" {
  config {
    recovery_plan_id = var.recovery_plan_id
  }
}
