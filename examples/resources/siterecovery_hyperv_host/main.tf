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

  # All VMs of the host together, at any time, and less in working hours.
  throttle {
    bandwidth_in_megabits_per_second = 500
  }

  throttle {
    bandwidth_in_megabits_per_second = 100
    days                             = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    start_time                       = "08:00"
    end_time                         = "18:00"
  }
}

# Another machine, over SSH. Secrets (passphrase, password) are given in the provider block.
resource "siterecovery_hyperv_host" "over_ssh" {
  name           = "hv2"
  hyperv_site_id = var.hyperv_site_id
  roles          = ["recovery"]

  host_connection = {
    type             = "ssh"
    host             = "hv2.example.com"
    private_key_path = pathexpand("~/.ssh/id_ed25519")
    known_hosts_path = pathexpand("~/.ssh/known_hosts")
  }
}
