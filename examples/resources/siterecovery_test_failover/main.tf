variable "recovery_plan_id" {
  type = string
}

resource "siterecovery_test_failover" "this" {
  recovery_plan_id = var.recovery_plan_id
  network_type     = "NoNetworkAttachAsInput"
  cleanup_comment  = "Monthly drill."
}

output "drill" {
  value = {
    for vm in siterecovery_test_failover.this.vms : vm.recovered_vm_name => vm.point_time
  }
}
