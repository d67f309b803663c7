resource "siterecovery_vault" "this" {
  name                = "vault-dr"
  resource_group_name = "rg-dr"
  location            = "northeurope"
}

resource "siterecovery_hyperv_site" "this" {
  name              = "site-oslo"
  recovery_vault_id = siterecovery_vault.this.id
}
