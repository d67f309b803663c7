variable "hyperv_site_id" {
  type = string
}

variable "target_network_id" {
  type = string
}

# VMs of the switch "LAN" belong to this network after a failover, unless they have a network of their own.
resource "siterecovery_network_mapping" "lan" {
  name                = "lan-to-azure"
  hyperv_site_id      = var.hyperv_site_id
  source_network_name = "LAN"
  target_network_id   = var.target_network_id
}
