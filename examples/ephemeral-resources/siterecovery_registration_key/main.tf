variable "hyperv_site_id" {
  type = string
}

ephemeral "siterecovery_registration_key" "this" {
  hyperv_site_id    = var.hyperv_site_id
  validity_in_hours = 4
}
