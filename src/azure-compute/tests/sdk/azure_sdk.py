"""Microsoft's unmodified Compute and Network SDKs against our double of Azure.

Needs: pip install azure-mgmt-compute azure-mgmt-network requests

    python src/azure-compute/tests/sdk/azure_sdk.py target/debug/examples/azure-double

The SDKs' own models, pollers and pagers are the judges: what they can't read, or wait for in vain, the double does wrong. The bodies that our
crate sends are made of the same fields.
"""

import json
import subprocess
import sys

import requests
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.network import NetworkManagementClient

steps = 0


def step(what, holds, seen=""):
    """One promise; the script ends at the first that doesn't hold."""
    global steps
    if not holds:
        print(f"FAILED {what}: {seen}")
        sys.exit(1)
    steps += 1
    print(f"ok {what}")


def refused(code, call):
    """The call must fail with this ARM error code."""
    try:
        call()
    except HttpResponseError as error:
        seen = error.error.code if error.error else None
        step(f"refused with {code}", seen == code, seen)
        return
    step(f"refused with {code}", False, "it went through")


class Bearer(SansIOHTTPPolicy):
    """The double speaks plain HTTP on this machine, which the SDK's own policy refuses."""

    def __init__(self, token):
        super().__init__()
        self.token = token

    def on_request(self, request):
        request.http_request.headers["Authorization"] = "Bearer " + self.token


class Unused:
    """Stands where a credential must stand."""

    def get_token(self, *_, **__):
        raise RuntimeError("the policy above brings the token")


def main(world):
    endpoint, group, region = world["endpoint"], world["group"], "westeurope"
    token = requests.post(f"{endpoint}/tenant/oauth2/v2.0/token", timeout=10).json()["access_token"]
    settings = {
        "base_url": endpoint,
        "authentication_policy": Bearer(token),
        "polling_interval": 0,
        "credential_scopes": [endpoint],
    }
    compute = ComputeManagementClient(Unused(), world["subscription"], **settings)
    network = NetworkManagementClient(Unused(), world["subscription"], **settings)

    sizes = [s for s in compute.resource_skus.list(filter=f"location eq '{region}'") if s.resource_type == "virtualMachines"]
    step("sizes are listed over all pages", len(sizes) > 5, len(sizes))
    step("a size has its capabilities", any(c.name == "MemoryGB" for c in sizes[0].capabilities))
    step("a restriction is read", any(s.restrictions and s.restrictions[0].reason_code == "NotAvailableForSubscription" for s in sizes))
    cores = [u for u in compute.usage.list(region) if u.name.value == "cores"]
    step("quotas are listed", len(cores) == 1 and cores[0].limit == 20, cores)

    net = network.virtual_networks.get(group, world["network"].rsplit("/", 1)[1])
    web = net.subnets[0].id
    free = network.virtual_networks.check_ip_address_availability(group, net.name, ip_address="10.0.1.10")
    step("an address is free", free.available is True)

    address = network.public_ip_addresses.begin_create_or_update(group, "web-ip", {
        "location": region, "sku": {"name": "Standard"}, "properties": {"publicIPAllocationMethod": "Static"}}).result()
    step("a public address is made", bool(address.ip_address), address.ip_address)

    def nic_body(wished):
        return {"location": region, "tags": {"siterecovery-recovery-id": "sdk"}, "properties": {"ipConfigurations": [
            {"name": "ipconfig1", "properties": {"subnet": {"id": web}, "primary": True, "privateIPAllocationMethod": "Static",
             "privateIPAddress": wished, "publicIPAddress": {"id": address.id}}}]}}

    refused("PrivateIPAddressInReservedRange", lambda: network.network_interfaces.begin_create_or_update(group, "web-nic", nic_body("10.0.1.2")).result())
    nic = network.network_interfaces.begin_create_or_update(group, "web-nic", nic_body("10.0.1.10")).result()
    step("a NIC has its address", nic.ip_configurations[0].private_ip_address == "10.0.1.10", nic.ip_configurations)
    taken = network.virtual_networks.check_ip_address_availability(group, net.name, ip_address="10.0.1.10")
    step("a taken address has others", taken.available is False and len(taken.available_ip_addresses) == 5, taken.available_ip_addresses)

    refused("InvalidParameter", lambda: compute.disks.begin_create_or_update(group, "bad", {
        "location": region, "properties": {"creationData": {"createOption": "Import", "sourceUri": world["vhd"]}}}).result())
    disk = compute.disks.begin_create_or_update(group, "web-system", {
        "location": region, "sku": {"name": "Premium_LRS"}, "properties": {"osType": "Linux", "hyperVGeneration": "V2",
        "creationData": {"createOption": "Import", "sourceUri": world["vhd"], "storageAccountId": world["account"]}}}).result()
    step("a disk is imported", (disk.provisioning_state, disk.disk_size_gb, disk.disk_state) == ("Succeeded", 10, "Unattached"),
         (disk.provisioning_state, disk.disk_size_gb, disk.disk_state))

    def vm_body(size):
        return {"location": region, "properties": {"hardwareProfile": {"vmSize": size},
                "storageProfile": {"osDisk": {"name": disk.name, "createOption": "Attach", "osType": "Linux", "managedDisk": {"id": disk.id}}},
                "networkProfile": {"networkInterfaces": [{"id": nic.id, "properties": {"primary": True}}]}}}

    refused("SkuNotAvailable", lambda: compute.virtual_machines.begin_create_or_update(group, "web", vm_body("Standard_M208s_v2")).result())
    vm = compute.virtual_machines.begin_create_or_update(group, "web", vm_body("Standard_D2s_v3")).result()
    step("a VM is made", vm.provisioning_state == "Succeeded", vm.provisioning_state)

    def power():
        view = compute.virtual_machines.instance_view(group, "web")
        return [s.code for s in view.statuses if s.code.startswith("PowerState/")]

    step("it runs", power() == ["PowerState/running"], power())
    expanded = compute.virtual_machines.get(group, "web", expand="instanceView")
    step("its view comes with it", expanded.instance_view.statuses[1].code == "PowerState/running")
    step("its disk belongs to it", compute.disks.get(group, "web-system").managed_by.endswith("/virtualMachines/web"))
    compute.virtual_machines.begin_deallocate(group, "web").result()
    step("it is deallocated", power() == ["PowerState/deallocated"], power())
    compute.virtual_machines.begin_start(group, "web").result()
    step("it runs again", power() == ["PowerState/running"], power())

    refused("OperationNotAllowed", lambda: compute.disks.begin_delete(group, "web-system").result())
    refused("NicInUse", lambda: network.network_interfaces.begin_delete(group, "web-nic").result())
    compute.virtual_machines.begin_delete(group, "web").result()
    refused("PublicIPAddressCannotBeDeleted", lambda: network.public_ip_addresses.begin_delete(group, "web-ip").result())
    network.network_interfaces.begin_delete(group, "web-nic").result()
    network.public_ip_addresses.begin_delete(group, "web-ip").result()
    compute.disks.begin_delete(group, "web-system").result()
    step("lists are empty", not list(compute.virtual_machines.list(group)) + list(compute.disks.list_by_resource_group(group))
         + list(network.network_interfaces.list(group)) + list(network.public_ip_addresses.list(group)))
    try:
        compute.virtual_machines.get(group, "web")
        step("what is gone is not found", False)
    except ResourceNotFoundError as error:
        step("what is gone is not found", error.error.code == "ResourceNotFound", error.error)
    print(f"{steps} promises held")


if __name__ == "__main__":
    double = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        main(json.loads(double.stdout.readline()))
    finally:
        double.stdin.close()
        double.wait(timeout=10)
