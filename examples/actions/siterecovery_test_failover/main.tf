variable "recovery_plan_id" {
  type = string
}

action "siterecovery_test_failover" "quarterly" {
  config {
    recovery_plan_id = var.recovery_plan_id
    report_path      = "drill.html"
    cleanup_comment  = "Quarterly drill."
  }
}
