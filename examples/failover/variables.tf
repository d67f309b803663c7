variable "prefix" {
  description = "Beginning of the names of all that is made: lower-case letters, digits and hyphens."
  type        = string
  default     = "failover"
}

variable "resource_group_name" {
  description = "Resource group of the vault, the storage account and the network."
  type        = string
  default     = "rg-failover"
}

variable "location" {
  description = "Region; the orchestrator's configuration says which there are."
  type        = string
  default     = "northeurope"
}

variable "vm_folder" {
  description = "Folder with one folder for each virtual machine of the source host."
  type        = string
}

variable "source_folder" {
  description = "Folder of the source host's engine."
  type        = string
  default     = "/var/lib/siterecovery-source"
}

variable "recovery_folder" {
  description = "Folder of the recovery host's engine; recovered virtual machines lie in it."
  type        = string
  default     = "/var/lib/siterecovery-recovery"
}

variable "recovery_generations" {
  description = "Generations of virtual machines that the recovery host runs; null: all that it can. Linux of generation 2 is converted for a host with [1]."
  type        = set(number)
  default     = null
}

variable "replica_folder" {
  description = "Folder of the storage account."
  type        = string
}

variable "boot_order" {
  description = "Names of the virtual machines to protect, group by group: a group boots when the one before has booted."
  type        = list(list(string))
}

variable "replication_interval_in_seconds" {
  description = "How far apart recovery points are."
  type        = number
  default     = 30
}
