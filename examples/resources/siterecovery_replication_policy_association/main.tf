variable "hyperv_site_id" {
  type = string
}

variable "policy_id" {
  type = string
}

resource "siterecovery_replication_policy_association" "this" {
  name           = "site-oslo-every-30-seconds"
  hyperv_site_id = var.hyperv_site_id
  policy_id      = var.policy_id
}
