variable "prefix" {
  description = "Beginning of the names of all that is made: lower-case letters, digits and hyphens."
  type        = string
  default     = "firstlight"
}

variable "resource_group_name" {
  description = "Resource group of the vault, the storage account and the network."
  type        = string
  default     = "rg-first-light"
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

variable "replica_folder" {
  description = "Folder of the storage account."
  type        = string
}

variable "boot_order" {
  description = "Names of the virtual machines to protect, group by group: a group boots when the one before has booted."
  type        = list(list(string))
}

variable "run_drill" {
  description = "Whether the drill's virtual machines shall be there."
  type        = bool
  default     = false
}
