"""Microsoft's unmodified Python SDK against a running orchestrator.

Needs: pip install azure-mgmt-recoveryservicessiterecovery==2.0.0 azure-mgmt-recoveryservices azure-identity
Reads the SITERECOVERY_* variables that the orchestrator prints at its first start. Makes its own vault,
walks site, policy, lists and removal, and checks what errors look like. With a host registered in the site
(SITERECOVERY_SDK_CONTAINER set to its container name) it walks the association too.

    python tests/sdk/asr_sdk.py
"""

import os
import sys
import uuid

import requests
from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential
from azure.mgmt.recoveryservices import RecoveryServicesClient
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient

ENDPOINT = os.environ["SITERECOVERY_ENDPOINT"].rstrip("/")
CA = os.environ["SITERECOVERY_CA_FILE"]
TENANT = os.environ["SITERECOVERY_TENANT_ID"]
SUBSCRIPTION = os.environ["SITERECOVERY_SUBSCRIPTION_ID"]
GROUP = "rg-sdk"
VAULT = "vault-sdk-" + uuid.uuid4().hex[:8]
SITE = "site-sdk"
POLICY = "policy-sdk"
SCOPE = (GROUP, VAULT)

steps = 0


def step(what, holds, seen=""):
    """One promise; the script ends at the first that doesn't hold."""
    global steps
    if not holds:
        print(f"FAILED {what}: {seen}")
        sys.exit(1)
    steps += 1
    print(f"ok {what}")


def refused(status, code, call):
    """The call must fail with this status and this ARM error code."""
    try:
        call()
    except HttpResponseError as error:
        seen = (error.status_code, error.error.code if error.error else None)
        step(f"refused with {status} {code}", seen == (status, code), seen)
        return
    step(f"refused with {status} {code}", False, "it went through")


def main():
    credential = ClientSecretCredential(
        TENANT,
        os.environ["SITERECOVERY_CLIENT_ID"],
        os.environ["SITERECOVERY_CLIENT_SECRET"],
        authority=ENDPOINT,
        disable_instance_discovery=True,
        connection_verify=CA,
    )
    options = dict(
        base_url=ENDPOINT,
        credential_scopes=[ENDPOINT + "/.default"],
        connection_verify=CA,
        polling_interval=1,
    )
    vaults = RecoveryServicesClient(credential, SUBSCRIPTION, **options)
    client = SiteRecoveryManagementClient(credential, SUBSCRIPTION, **options)

    vault = vaults.vaults.begin_create_or_update(
        GROUP, VAULT, {"location": "northeurope", "sku": {"name": "RS0"}, "properties": {}, "tags": {"team": "sdk"}}
    ).result()
    step("vault is made", vault.name == VAULT and vault.properties.provisioning_state == "Succeeded")
    step("vault keeps its tags", dict(vault.tags) == {"team": "sdk"}, vault.tags)
    step("vault is listed", VAULT in [one.name for one in vaults.vaults.list_by_subscription_id()])
    setting = client.replication_vault_setting.get(*SCOPE, "default")
    step("default vault setting is there", setting.name == "default")

    seen = []
    site = client.replication_fabrics.begin_create(
        *SCOPE,
        SITE,
        {"properties": {"customDetails": {"instanceType": "HyperVSite"}}},
        raw_response_hook=lambda response: seen.append(response.http_response.headers.get("Location")),
    ).result()
    step("site is made", site.properties.custom_details.instance_type == "HyperVSite", site)
    step("site has its identifier", bool(uuid.UUID(site.properties.internal_identifier)))
    step("operation has a Location", any(url and "/operationresults/" in url for url in seen), seen)
    step("site is listed", [one.name for one in client.replication_fabrics.list(*SCOPE)] == [SITE])

    policy_input = {
        "properties": {
            "providerSpecificInput": {
                "instanceType": "HyperVReplicaAzure",
                "recoveryPointHistoryDuration": 4,
                "applicationConsistentSnapshotFrequencyInHours": 2,
                "replicationInterval": 300,
            }
        }
    }
    policy = client.replication_policies.begin_create(*SCOPE, POLICY, policy_input).result()
    details = policy.properties.provider_specific_details
    step("policy is made", details.replication_interval == 300, details)
    step("policy has its retention", details.recovery_point_history_duration_in_hours == 4, details)
    update = {
        "properties": {
            "replicationProviderSettings": {"instanceType": "HyperVReplicaAzure", "replicationInterval": 30}
        }
    }
    policy = client.replication_policies.begin_update(*SCOPE, POLICY, update).result()
    step("policy is updated", policy.properties.provider_specific_details.replication_interval == 30)
    step("policy is listed", [one.name for one in client.replication_policies.list(*SCOPE)] == [POLICY])
    policy_input["properties"]["providerSpecificInput"]["replicationInterval"] = 1
    refused(400, "InvalidParameter", lambda: client.replication_policies.begin_create(*SCOPE, "bad", policy_input))

    container = os.environ.get("SITERECOVERY_SDK_CONTAINER")
    if container:
        mapping = {"properties": {"policyId": policy.id, "targetProtectionContainerId": "Microsoft Azure"}}
        made = client.replication_protection_container_mappings.begin_create(
            *SCOPE, SITE, container, "map-sdk", mapping
        ).result()
        step("policy is associated", made.properties.state == "Paired", made)

    for name, values in {
        "containers": client.replication_protection_containers.list(*SCOPE),
        "mappings": client.replication_protection_container_mappings.list(*SCOPE),
        "hosts": client.replication_recovery_services_providers.list(*SCOPE),
        "protected items": client.replication_protected_items.list(*SCOPE),
        "plans": client.replication_recovery_plans.list(*SCOPE),
        "events": client.replication_events.list(*SCOPE),
        "networks": client.replication_networks.list(*SCOPE),
        "alert settings": client.replication_alert_settings.list(*SCOPE),
    }.items():
        step(f"list of {name} can be read", isinstance(list(values), list))
    jobs = list(client.replication_jobs.list(*SCOPE))
    step("every change left a job", len(jobs) >= 3 and all(job.properties.state == "Succeeded" for job in jobs), jobs)
    job = client.replication_jobs.get(*SCOPE, jobs[0].name)
    step("job has tasks", len(job.properties.tasks) >= 1)
    health = client.replication_vault_health.get(*SCOPE)
    step("vault health is there", health.properties.fabrics_health.resource_count == 1, health)

    refused(404, "ResourceNotFound", lambda: client.replication_fabrics.get(*SCOPE, "none"))
    refused(409, "VaultNotEmpty", lambda: vaults.vaults.begin_delete(GROUP, VAULT))
    answer = requests.get(
        f"{ENDPOINT}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.RecoveryServices/vaults?api-version=2025-08-01",
        headers={"Authorization": "Bearer wrong"},
        verify=CA,
        timeout=10,
    )
    step("wrong token gets a challenge", answer.status_code == 401 and "authorization=" in answer.headers["WWW-Authenticate"])

    if container:
        client.replication_protection_container_mappings.begin_delete(*SCOPE, SITE, container, "map-sdk", {}).result()
        step("policy is dissociated", True)
    client.replication_policies.begin_delete(*SCOPE, POLICY).result()
    client.replication_fabrics.begin_delete(*SCOPE, SITE).result()
    step("site is removed", list(client.replication_fabrics.list(*SCOPE)) == [])
    vaults.vaults.begin_delete(GROUP, VAULT).result()
    step("vault is removed", VAULT not in [one.name for one in vaults.vaults.list_by_subscription_id()])
    print(f"{steps} promises hold")


if __name__ == "__main__":
    main()
