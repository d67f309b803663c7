variable "recovery_vault_id" {
  type = string
}

data "siterecovery_jobs" "failed" {
  recovery_vault_id = var.recovery_vault_id
  state             = "Failed"
}

output "failed_jobs" {
  value = [for job in data.siterecovery_jobs.failed.jobs : "${job.start_time} ${job.friendly_name} of ${job.target_name}: ${job.error}"]
}
