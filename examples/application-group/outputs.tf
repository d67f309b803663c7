output "protected_vm_ids" {
  value = { for name, vm in siterecovery_protected_vm.this : name => vm.id }
}

output "drill_vms" {
  description = "The virtual machines of the drill; empty when there is none."
  value       = one(siterecovery_test_failover.drill[*].vms)
}
