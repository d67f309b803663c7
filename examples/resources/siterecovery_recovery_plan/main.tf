variable "recovery_vault_id" {
  type = string
}

variable "hyperv_site_id" {
  type = string
}

variable "database_vm_id" {
  type = string
}

variable "web_vm_ids" {
  type = list(string)
}

resource "siterecovery_recovery_plan" "this" {
  name              = "shop"
  recovery_vault_id = var.recovery_vault_id
  hyperv_site_id    = var.hyperv_site_id

  boot_group {
    protected_vm_ids = [var.database_vm_id]
  }

  boot_group {
    protected_vm_ids = var.web_vm_ids
  }
}
