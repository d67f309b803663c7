resource "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"

  tags = {
    team = "platform"
  }
}
