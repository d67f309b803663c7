output "vault_id" {
  value = provider::siterecovery::build_id(
    "/subscriptions/22222222-2222-4222-8222-222222222222/resourceGroups/rg-dr",
    "Microsoft.RecoveryServices/vaults",
    "vault-dr",
  )
}
