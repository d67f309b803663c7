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

    post_action {
      name                 = "database listens"
      type                 = "ReadinessCheckActionDetails"
      fail_over_types      = ["TestFailover"]
      fail_over_directions = ["PrimaryToRecovery"]
      readiness_check      = "Port"
      readiness_port       = 5432
      timeout              = "00:05:00"
    }
  }

  boot_group {
    protected_vm_ids = var.web_vm_ids

    pre_action {
      name                      = "point the clients here"
      type                      = "ManualActionDetails"
      fail_over_types           = ["PlannedFailover", "UnplannedFailover"]
      fail_over_directions      = ["PrimaryToRecovery"]
      manual_action_instruction = "Change the DNS entry of shop.example.com, then go on."
    }

    post_action {
      name                 = "shop answers"
      type                 = "ScriptActionDetails"
      fail_over_types      = ["TestFailover", "PlannedFailover", "UnplannedFailover"]
      fail_over_directions = ["PrimaryToRecovery"]
      fabric_location      = "Recovery"
      script_path          = "shop/check.sh"
      timeout              = "00:05:00"
    }
  }
}
