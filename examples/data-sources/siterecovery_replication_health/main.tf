variable "recovery_vault_id" {
  type = string
}

data "siterecovery_replication_health" "this" {
  recovery_vault_id = var.recovery_vault_id
}

# A check tells when a VM could not be recovered to the last five minutes, and never stops an apply.
check "recovery_points_are_young" {
  assert {
    condition = alltrue([
      for vm in data.siterecovery_replication_health.this.virtual_machines : coalesce(vm.rpo_in_seconds, 0) < 300
    ])
    error_message = "At least one VM has no recovery point of the last five minutes."
  }
}

output "backlog" {
  value = { for vm in data.siterecovery_replication_health.this.virtual_machines : vm.vm_name => vm.backlog_bytes }
}
