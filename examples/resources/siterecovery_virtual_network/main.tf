resource "siterecovery_virtual_network" "this" {
  name                = "vnet-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"
  address_space       = ["10.80.0.0/16"]

  subnet {
    name           = "servers"
    address_prefix = "10.80.1.0/24"
  }
}
