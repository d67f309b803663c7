variable "hyperv_site_id" {
  type = string
}

data "siterecovery_protectable_vms" "this" {
  hyperv_site_id = var.hyperv_site_id
  names          = ["web01", "db01"]
}

output "vm_ids" {
  value = {
    for vm in data.siterecovery_protectable_vms.this.vms : vm.name => vm.vm_id
  }
}
