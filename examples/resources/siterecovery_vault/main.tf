resource "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"

  # A new text gives the vault a new encryption key.
  encryption_key_rotation = "2027-Q1"

  tags = {
    team = "platform"
  }
}
