variable "protected_vm_id" {
  type = string
}

data "siterecovery_recovery_points" "this" {
  protected_vm_id = var.protected_vm_id
}

output "newest" {
  value = try(data.siterecovery_recovery_points.this.recovery_points[0].time, null)
}
