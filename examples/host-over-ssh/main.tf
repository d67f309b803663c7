# A recovery host that is another machine: the engine is put onto it over SSH. See docs/guides/deploy-over-ssh.md.
# The orchestrator's address and credentials come from the environment (SITERECOVERY_*).

terraform {
  required_version = ">= 1.10"

  required_providers {
    siterecovery = {
      source = "siterecovery/siterecovery"
    }
  }
}

# Ephemeral: in neither plan nor state.
variable "passphrase" {
  description = "Passphrase of the private key; empty when it has none."
  type        = string
  default     = ""
  ephemeral   = true
}

variable "hyperv_site_id" {
  type = string
}

variable "host" {
  type = string
}

variable "host_key_fingerprint" {
  description = "What `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` shows at the host's console."
  type        = string
}

provider "siterecovery" {
  ssh_private_key_passphrase = var.passphrase
}

resource "siterecovery_hyperv_host" "recovery" {
  name           = "hv-dr1"
  hyperv_site_id = var.hyperv_site_id
  roles          = ["recovery"]

  host_connection = {
    type                 = "ssh"
    host                 = var.host
    user                 = "root"
    private_key_path     = pathexpand("~/.ssh/id_ed25519")
    host_key_fingerprint = var.host_key_fingerprint
  }
}

output "engine_version" {
  value = siterecovery_hyperv_host.recovery.engine_version
}
