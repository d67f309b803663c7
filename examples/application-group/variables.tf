variable "prefix" {
  description = "Beginning of the names of all that is made, and name of the group: lower-case letters, digits and hyphens."
  type        = string
  default     = "shop"
}

variable "resource_group_name" {
  description = "Resource group of the vault and the storage account."
  type        = string
  default     = "rg-shop"
}

variable "location" {
  description = "Region; the orchestrator's configuration says which there are."
  type        = string
  default     = "northeurope"
}

variable "host_name" {
  description = "Name of this machine in the vault."
  type        = string
  default     = "localhost"
}

variable "vm_folder" {
  description = "Folder with one folder for each virtual machine."
  type        = string
}

variable "data_folder" {
  description = "Folder for the engine's identity, state and configuration; removed with the host."
  type        = string
  default     = "/var/lib/siterecovery"
}

variable "install_folder" {
  description = "Folder for the engine's executable."
  type        = string
  default     = "/opt/siterecovery/bin"
}

variable "vm_names" {
  description = "The application's virtual machines. All of them must run on this host."
  type        = set(string)
}

variable "storage_account_name" {
  description = "Name of the storage account."
  type        = string
}

variable "blob_endpoint" {
  description = "The account's blob endpoint, such as https://ACCOUNT.blob.core.windows.net."
  type        = string
}

variable "account_key" {
  description = "The account's key. It is in neither plan nor state."
  type        = string
  sensitive   = true
  ephemeral   = true
}

variable "interval_in_seconds" {
  description = "Seconds between recovery points: 5, 30, 300 or 900."
  type        = number
  default     = 30
}

variable "bandwidth_in_megabits_per_second" {
  description = "What this host may send to the storage account."
  type        = number
  default     = 1000
}

variable "key_rotation" {
  description = "A new text gives the vault a new encryption key."
  type        = string
  default     = "first"
}

variable "resynchronize" {
  description = "A new text has every disk compared with its replica."
  type        = string
  default     = null
}

variable "run_drill" {
  description = "Whether the drill's virtual machines shall be there."
  type        = bool
  default     = false
}
