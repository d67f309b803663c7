output "recovery_plan" {
  description = "Name of the recovery plan: `siterecovery failover planned --plan NAME` moves all of its virtual machines."
  value       = siterecovery_recovery_plan.this.name
}

output "protected_vm_ids" {
  value = { for name, vm in siterecovery_protected_vm.this : name => vm.id }
}
