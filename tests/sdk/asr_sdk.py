"""Microsoft's unmodified Python SDK against an orchestrator.

Needs: pip install azure-mgmt-recoveryservicessiterecovery==2.0.0 azure-mgmt-recoveryservices azure-identity

    python tests/sdk/asr_sdk.py target/debug     starts an orchestrator and an engine of its own
    python tests/sdk/asr_sdk.py                  uses the one that the SITERECOVERY_* variables name

Makes its own vault and walks site, host, policy, association, lists, errors and removal. Without an engine of
its own the parts about hosts are left out.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
import uuid

import requests
from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential
from azure.mgmt.recoveryservices import RecoveryServicesClient
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient

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


def wait(what, seconds, condition):
    """Asks until the condition gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    step(what, False, "waited too long")


def exports(text):
    """The variables that the orchestrator prints."""
    words = (shlex.split(line) for line in text.splitlines() if line.startswith("export "))
    return dict(word[1].split("=", 1) for word in words)


def with_own_processes(programs):
    """Starts orchestrator and engine in a temporary folder, walks, and takes both down again."""
    with tempfile.TemporaryDirectory(prefix="asr-sdk-") as name:
        folder = pathlib.Path(name)
        (folder / "vms").mkdir()
        (folder / "engine").mkdir()
        started = []

        def start(program, *arguments):
            log = open(folder / f"{program}.log", "wb")
            process = subprocess.Popen([programs / program, *arguments], stdout=log, stderr=log)
            started.append(process)

        try:
            start(
                "siterecovery-orchestrator", "serve", "--data", folder / "data", "--listen", "127.0.0.1:19443",
                "--gateway", "127.0.0.1:19444", "--write-admin-env", folder / "admin.env", "--ready-file", folder / "ready",
            )
            wait("orchestrator is ready", 20, (folder / "ready").exists)
            os.environ.update(exports((folder / "admin.env").read_text()))

            def register(key):
                (folder / "registration.key").write_text(key)
                config = {
                    "vm_folder": folder / "vms",
                    "data_folder": folder / "engine",
                    "registration_key_file": folder / "registration.key",
                }
                lines = [f'{key} = "{value}"' for key, value in config.items()]
                (folder / "engine.toml").write_text("\n".join(lines) + "\n")
                start("siterecovery-engine", "run", "--config", folder / "engine.toml")

            walk(register, lambda: virtual_machine(folder / "vms" / "web01"))
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=20)


def virtual_machine(folder):
    """A VM of the host, off, connected to the virtual switch "LAN"."""
    folder.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", folder / "os.vhdx", "64M"], check=True)
    (folder / "vm.toml").write_text(
        f'id = "{uuid.uuid4()}"\nname = "web01"\ngeneration = 2\nmemory_mib = 256\nprocessors = 1\nos_type = "Linux"\n'
        '[[disk]]\nfile = "os.vhdx"\n[[network]]\nname = "LAN"\nmac = "52:54:00:00:00:01"\n'
    )


def network_mapping(client, call, subscription):
    """A switch is found, mapped, mapped to another network and let go."""

    def virtual_network(name):
        path = f"/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Network/virtualNetworks/{name}"
        body = {"location": "northeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}, "subnets": []}}
        return call("PUT", path, body).json()["id"]

    first, second = virtual_network("vnet-sdk-1"), virtual_network("vnet-sdk-2")
    network = wait(
        "switch is a network of the site", 30, lambda: next(iter(client.replication_networks.list_by_replication_fabrics(*SCOPE, SITE)), None)
    )
    step("network has the switch's name", network.properties.friendly_name == "LAN", network)

    def body(target):
        return {
            "properties": {
                "recoveryFabricName": "Microsoft Azure",
                "recoveryNetworkId": target,
                "fabricSpecificDetails": {"instanceType": "VmmToAzure"},
            }
        }

    at = (*SCOPE, SITE, network.name, "lan")
    made = client.replication_network_mappings.begin_create(*at, body(first)).result()
    step("network is mapped", made.properties.recovery_network_id == first and made.properties.state == "Paired", made)
    changed = client.replication_network_mappings.begin_update(*at, body(second)).result()
    step("mapping is changed", changed.properties.recovery_network_id == second, changed)
    listed = list(client.replication_network_mappings.list(*SCOPE))
    step("mapping is listed", [one.id for one in listed] == [made.id], listed)
    step("mapped network stays", call("DELETE", second).status_code == 409)
    client.replication_network_mappings.begin_delete(*at).result()
    step("mapping is removed", list(client.replication_network_mappings.list(*SCOPE)) == [])


def caller(credential, endpoint, ca):
    """Calls for which there is no SDK here."""

    def call(method, path, body=None):
        token = credential.get_token(endpoint + "/.default").token
        answer = requests.request(
            method,
            f"{endpoint}{path}?api-version=2025-08-01",
            headers={"Authorization": "Bearer " + token},
            json=body,
            verify=ca,
            timeout=30,
        )
        return answer

    return call


def storage_account(call, subscription):
    """An account in Azure, in the shape that Microsoft's storage SDK sends and reads."""
    path = f"/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/stsdk"
    secret = "A" * 86 + "=="
    body = {
        "location": "northeurope",
        "sku": {"name": "Standard_GRS"},
        "kind": "StorageV2",
        "tags": {"team": "sdk"},
        "properties": {"blobEndpoint": "https://stsdk.blob.core.windows.net", "accountKey": secret},
    }
    made = call("PUT", path, body)
    step("storage account is made", made.status_code == 201, made.text)
    step("storage account hides its key", secret not in made.text and secret not in call("GET", path).text)
    seen = call("GET", path).json()
    step("storage account has its endpoints", seen["properties"]["primaryEndpoints"]["blob"] == "https://stsdk.blob.core.windows.net/", seen)
    step("storage account has its kind", (seen["sku"], seen["kind"]) == ({"name": "Standard_GRS", "tier": "Standard"}, "StorageV2"), seen)
    tagged = call("PATCH", path, {"tags": {"team": "dr"}})
    step("storage account takes new tags", tagged.json()["tags"] == {"team": "dr"}, tagged.text)
    step("storage account is removed", call("DELETE", path).status_code in (200, 204))


def premium_account(call, subscription, client):
    """Premium storage: shown as such, and refused for a policy that it can't keep up with."""
    path = f"/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/stfast"
    body = {"location": "northeurope", "sku": {"name": "Premium_ZRS"}, "properties": {"folder": "/srv/fast"}}
    made = call("PUT", path, body)
    step("premium account is shown as such", made.json()["sku"] == {"name": "Premium_ZRS", "tier": "Premium"}, made.text)
    policy = {
        "properties": {
            "providerSpecificInput": {
                "instanceType": "HyperVReplicaAzure",
                "recoveryPointHistoryDuration": 4,
                "replicationInterval": 30,
                "storageAccounts": [path],
            }
        }
    }
    refused(400, "InvalidParameter", lambda: client.replication_policies.begin_create(*SCOPE, "too-fast", policy))
    step("premium account is removed", call("DELETE", path).status_code in (200, 204))


def walk(register=None, add_virtual_machine=None):
    """The walk. `register` starts an engine with a registration key."""
    endpoint = os.environ["SITERECOVERY_ENDPOINT"].rstrip("/")
    ca = os.environ["SITERECOVERY_CA_FILE"]
    subscription = os.environ["SITERECOVERY_SUBSCRIPTION_ID"]
    credential = ClientSecretCredential(
        os.environ["SITERECOVERY_TENANT_ID"],
        os.environ["SITERECOVERY_CLIENT_ID"],
        os.environ["SITERECOVERY_CLIENT_SECRET"],
        authority=endpoint,
        disable_instance_discovery=True,
        connection_verify=ca,
    )
    options = dict(
        base_url=endpoint,
        credential_scopes=[endpoint + "/.default"],
        connection_verify=ca,
        polling_interval=1,
    )
    vaults = RecoveryServicesClient(credential, subscription, **options)
    client = SiteRecoveryManagementClient(credential, subscription, **options)

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

    # Encryption by ASR's own field; what ASR has no word for goes through and comes back beside it.
    secured = {
        "properties": {
            "providerSpecificInput": {
                "instanceType": "HyperVReplicaAzure",
                "recoveryPointHistoryDuration": 24,
                "replicationInterval": 30,
                "encryption": "Enable",
                "immutabilityInHours": 48,
                "retentionTiers": [{"intervalInMinutes": 60, "durationInHours": 168}],
            }
        }
    }
    policy_secured = client.replication_policies.begin_create(*SCOPE, "policy-secured", secured).result()
    step("policy encrypts", policy_secured.properties.provider_specific_details.encryption == "Enabled", policy_secured)
    call = caller(credential, endpoint, ca)
    extended = call("GET", policy_secured.id).json()["properties"]["providerSpecificDetails"]
    step("policy keeps its extensions", extended["retentionTiers"][0]["durationInHours"] == 168, extended)
    key = call("GET", vault.id).json()["properties"]["replicationEncryptionKey"]
    rotated = call("POST", vault.id + "/rotateEncryptionKey", {}).json()["properties"]
    step("vault's key rotates", rotated["keyId"] != key["keyId"] and key["keyId"] in rotated["keptKeyIds"], rotated)
    client.replication_policies.begin_delete(*SCOPE, "policy-secured").result()
    storage_account(call, subscription)
    premium_account(call, subscription, client)
    refused(
        404,
        "ResourceNotFound",
        lambda: client.replication_protected_items.begin_repair_replication(*SCOPE, SITE, "none", "none"),
    )

    container = None
    if register:
        token = credential.get_token(endpoint + "/.default").token
        answer = requests.post(
            f"{endpoint}{site.id}/registrationKeys?api-version=2025-08-01",
            headers={"Authorization": "Bearer " + token},
            json={"properties": {"validityInHours": 1}},
            verify=ca,
            timeout=10,
        )
        register(answer.json()["properties"]["key"])

        def connected():
            hosts = list(client.replication_recovery_services_providers.list_by_replication_fabrics(*SCOPE, SITE))
            return next((host for host in hosts if host.properties.connection_status == "Connected"), None)

        host = wait("host is connected", 30, connected)
        step("host has registered", host.properties.fabric_type == "HyperVSite", host)
        refreshed = client.replication_recovery_services_providers.begin_refresh_provider(*SCOPE, SITE, host.name).result()
        slowed = caller(credential, endpoint, ca)("PATCH", host.id, {"properties": {"throttles": [{"bytesPerSecond": 1000}]}})
        step("host takes a rate limit", slowed.json()["properties"]["throttles"] == [{"bytesPerSecond": 1000}], slowed.text)
        step("host is refreshed", refreshed.properties.last_heart_beat is not None, refreshed)
        containers = list(client.replication_protection_containers.list_by_replication_fabrics(*SCOPE, SITE))
        step("site has exactly one container", len(containers) == 1, containers)
        container = containers[0].name
        step("container is named after the site", container == "cloud_" + site.properties.internal_identifier, container)
        items = list(client.replication_protectable_items.list_by_replication_protection_containers(*SCOPE, SITE, container))
        step("protectable items can be read", items == [], items)
        mapping = {"properties": {"policyId": policy.id, "targetProtectionContainerId": "Microsoft Azure"}}
        made = client.replication_protection_container_mappings.begin_create(
            *SCOPE, SITE, container, "map-sdk", mapping
        ).result()
        step("policy is associated", made.properties.state == "Paired", made)
        add_virtual_machine()
        network_mapping(client, caller(credential, endpoint, ca), subscription)

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
        f"{endpoint}/subscriptions/{subscription}/providers/Microsoft.RecoveryServices/vaults?api-version=2025-08-01",
        headers={"Authorization": "Bearer wrong"},
        verify=ca,
        timeout=10,
    )
    step("wrong token gets a challenge", answer.status_code == 401 and "authorization=" in answer.headers["WWW-Authenticate"])

    if container:
        client.replication_protection_container_mappings.begin_delete(*SCOPE, SITE, container, "map-sdk", {"properties": {}}).result()
        step("policy is dissociated", list(client.replication_protection_container_mappings.list(*SCOPE)) == [])
        client.replication_recovery_services_providers.begin_delete(*SCOPE, SITE, host.name).result()
        step("host is removed", list(client.replication_recovery_services_providers.list(*SCOPE)) == [])
    client.replication_policies.begin_delete(*SCOPE, POLICY).result()
    client.replication_fabrics.begin_delete(*SCOPE, SITE).result()
    step("site is removed", list(client.replication_fabrics.list(*SCOPE)) == [])
    vaults.vaults.begin_delete(GROUP, VAULT).result()
    step("vault is removed", VAULT not in [one.name for one in vaults.vaults.list_by_subscription_id()])
    print(f"{steps} promises hold")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with_own_processes(pathlib.Path(sys.argv[1]).resolve())
    else:
        walk()
