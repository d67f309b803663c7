terraform {
  required_providers {
    siterecovery = {
      source = "siterecovery/siterecovery"
    }
  }
}

# client_secret comes from the environment: SITERECOVERY_CLIENT_SECRET
provider "siterecovery" {
  endpoint        = "https://recovery.example.com:8443"
  ca_file         = "/etc/siterecovery/ca.pem"
  tenant_id       = "11111111-1111-4111-8111-111111111111"
  client_id       = "terraform"
  subscription_id = "22222222-2222-4222-8222-222222222222"
}
