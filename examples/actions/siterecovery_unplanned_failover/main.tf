variable "protected_vm_id" {
  type = string
}

variable "recovery_plan_id" {
  type = string
}

action "siterecovery_unplanned_failover" "this" {
  config {
    protected_vm_id = var.protected_vm_id
  }
}

# All VMs of a plan; the site can still be reached, so it is shut down if that succeeds.
action "siterecovery_unplanned_failover" "site" {
  config {
    recovery_plan_id    = var.recovery_plan_id
    recovery_point_type = "LatestApplicationConsistent"
    shut_down_source    = true
  }
}
