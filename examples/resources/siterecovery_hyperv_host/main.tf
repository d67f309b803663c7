variable "hyperv_site_id" {
  type = string
}

resource "siterecovery_hyperv_host" "this" {
  name           = "hv1"
  hyperv_site_id = var.hyperv_site_id

  host_connection = {
    type = "local"
  }

  vm_folder = "/srv/vms"
  roles     = ["source", "recovery"]
}
