output "vault_id" {
  value = siterecovery_vault.this.id
}

output "hyperv_site_id" {
  value = siterecovery_hyperv_site.this.id
}

output "hyperv_host_id" {
  value = siterecovery_hyperv_host.this.id
}

output "recovery_plan_id" {
  value = siterecovery_recovery_plan.this.id
}

output "protected_vm_ids" {
  value = { for name, vm in siterecovery_protected_vm.this : name => vm.id }
}

output "drill_vms" {
  description = "The virtual machines of the drill, in boot order; empty when there is none."
  value       = one(siterecovery_test_failover.drill[*].vms)
}
