variable "protected_vm_id" {
  type = string
}

data "siterecovery_recovery_points" "all" {
  protected_vm_id = var.protected_vm_id
}

locals {
  application_consistent = [
    for point in data.siterecovery_recovery_points.all.recovery_points : point.id
    if point.type == "ApplicationConsistent"
  ]
}

action "siterecovery_change_recovery_point" "this" {
  config {
    protected_vm_id   = var.protected_vm_id
    recovery_point_id = local.application_consistent[0] # the newest one
  }
}
