output "vault_name" {
  value = provider::siterecovery::parse_id("/subscriptions/22222222-2222-4222-8222-222222222222/resourceGroups/rg-dr/providers/Microsoft.RecoveryServices/vaults/vault-dr").name
}
