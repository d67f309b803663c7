data "siterecovery_virtual_network" "this" {
  name                = "vnet-dr"
  resource_group_name = "rg-dr"
}

output "id" {
  value = data.siterecovery_virtual_network.this.id
}
