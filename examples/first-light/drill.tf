# A drill: both replicas boot as new virtual machines, group by group, isolated from every network, while the originals and
# the replication go on. `terraform apply -var run_drill=true` starts it, an apply without it cleans up.
resource "siterecovery_test_failover" "drill" {
  count = var.run_drill ? 1 : 0

  recovery_plan_id = siterecovery_recovery_plan.this.id
  network_type     = "NoNetworkAttachAsInput"
  cleanup_comment  = "First light drill."
}
