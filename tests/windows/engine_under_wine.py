"""The engine for Windows under Wine, against a real orchestrator on Linux.

    python tests/windows/engine_under_wine.py target/debug target/windows/x86_64-pc-windows-gnu/windows-test/siterecovery-engine.exe

The hyperv driver's foreign functions are tests/windows/driver.sh's.

The first folder has our programs for Linux: orchestrator, and the engine that judges what the other one wrote. Needs Wine
and qemu-utils (tests/lab/prerequisites.sh) and the Python package requests. Ends all that it started.

What Wine can't show: Hyper-V itself, access lists (its icacls does nothing), the restarts of a failed service (its service
manager has none), and how durable a flush is.
"""

import json
import os
import pathlib
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
WINE = ROOT / "tests/lab/wine.sh"
SERVICE = "SiteRecoveryEngineTest"
API = "api-version=2025-08-01"
MIB = 1 << 20

steps = 0


def step(what, holds, seen=""):
    """One promise; the script ends at the first that doesn't hold."""
    global steps
    if not holds:
        raise SystemExit(f"FAILED {what}: {seen}")
    steps += 1
    print(f"ok {what}", flush=True)


def wait(what, seconds, condition):
    """Asks until the condition gives something; then it is a promise that holds."""
    end = time.monotonic() + seconds
    seen = None
    while time.monotonic() < end:
        seen = condition()
        if seen:
            step(what, True)
            return seen
        time.sleep(0.2)
    step(what, False, f"not within {seconds} s")


def run(*command, check=True):
    """Runs to the end and gives what was printed. By files: what a program leaves running may hold a pipe for ever."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        ended = subprocess.run([str(word) for word in command], stdout=out, stderr=errors, stdin=subprocess.DEVNULL, timeout=300)
        for name, file in (("stdout", out), ("stderr", errors)):
            file.seek(0)
            setattr(ended, name, file.read())
    if check and ended.returncode != 0:
        raise SystemExit(f"{command} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended


def windows(path):
    """A path of Linux as Wine shows it."""
    return "Z:" + str(path).replace("/", "\\")


class Machine:
    """The Windows machine: Wine ends all services when no other program is left, so one stays."""

    def __init__(self):
        self.shell = None
        self.turn_on()

    def turn_on(self):
        self.shell = subprocess.Popen([WINE, "cmd.exe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def turn_off(self):
        """Like a power cut: no program is asked."""
        run(WINE, "--end", check=False)
        self.shell.kill()
        self.shell.wait(timeout=20)


class Engine:
    """The program under Wine."""

    def __init__(self, program, folder):
        self.program = program
        self.data = folder / "engine"
        self.config = folder / "engine.toml"
        lines = {
            "vm_folder": folder / "vms",
            "data_folder": self.data,
            "registration_key_file": folder / "registration.key",
        }
        text = "".join(f"{key} = '{windows(path)}'\n" for key, path in lines.items())
        self.config.write_text(text + "host_name = 'HV01'\nlog_level = 'info,engine=debug'\n")

    def run(self, *words, check=True):
        return run(WINE, self.program, *words, check=check)

    def service(self, word, *words, check=True):
        return self.run("service", word, "--name", SERVICE, *words, check=check)

    def status(self):
        ended = self.run("status", "--json", "--config", windows(self.config), check=False)
        return json.loads(ended.stdout) if ended.returncode == 0 else None

    def process(self):
        """Its process as Linux counts: the one that runs the service's command line."""
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            line = b" ".join(words)
            if b"siterecovery-engine.exe" in line and b"service" in line and str(self.config).replace("/", "\\").encode() in line:
                return int(entry.name)
        return None

    def log(self):
        try:
            return (self.data / "engine.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""


class Api:
    """The orchestrator's REST interface."""

    def __init__(self, environment):
        self.endpoint = environment["SITERECOVERY_ENDPOINT"].rstrip("/")
        self.ca = environment["SITERECOVERY_CA_FILE"]
        self.group = f"/subscriptions/{environment['SITERECOVERY_SUBSCRIPTION_ID']}/resourceGroups/rg-windows/providers"
        token = requests.post(
            f"{self.endpoint}/{environment['SITERECOVERY_TENANT_ID']}/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "client_id": environment["SITERECOVERY_CLIENT_ID"],
                "client_secret": environment["SITERECOVERY_CLIENT_SECRET"],
                "scope": self.endpoint + "/.default",
            },
            verify=self.ca,
            timeout=30,
        )
        self.headers = {"Authorization": "Bearer " + token.json()["access_token"]}

    def call(self, method, path, body=None):
        url = path if path.startswith("https://") else f"{self.endpoint}{path}?{API}"
        answer = requests.request(method, url, headers=self.headers, json=body, verify=self.ca, timeout=60)
        if answer.status_code >= 400:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    def get(self, path):
        return self.call("GET", path).json()

    def done(self, method, path, body=None):
        """Waits for the end of the operation, too."""
        answer = self.call(method, path, body)
        url = answer.headers.get("Azure-AsyncOperation")
        while url:
            state = self.call("GET", url).json()
            if state["status"] in ("Succeeded", "Failed", "Canceled"):
                if state["status"] != "Succeeded":
                    raise SystemExit(f"{method} {path}: {state}")
                return
            time.sleep(0.2)


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % one.getsockname()[1]


def image(path, size, kind, seed):
    """A dynamic image with some data at its begin, in its middle and at its end; none of it can be compressed."""
    data = random.Random(seed)
    raw = path.with_suffix(".bytes")
    with open(raw, "wb") as file:
        file.truncate(size)
        for at, length in ((0, 2 * MIB), (size // 2 + 4096, 3 * MIB), (size - MIB, MIB)):
            file.seek(at)
            file.write(data.randbytes(length))
    run("qemu-img", "convert", "-f", "raw", "-O", kind, "-o", "subformat=dynamic", raw, path)
    raw.unlink()


def write(path, kind, offset, length, byte):
    """Writes into an image, as its VM would have."""
    run("qemu-io", "-f", kind, "-c", f"write -P {byte} {offset} {length}", path)


class Judge:
    """The engine for Linux, which reads what the one for Windows wrote."""

    def __init__(self, program, vm_folder):
        self.program, self.vm_folder = program, vm_folder

    def image(self, path):
        return json.loads(run(self.program, "verify", "--json", path).stdout)["blake3"]

    def images(self):
        """Hashes of the images of the VM, by file."""
        return sorted(self.image(path) for path in self.vm_folder.iterdir() if path.suffix in (".vhdx", ".vhd"))

    def replica(self, folder, points="newest"):
        ended = run(self.program, "verify", "--json", "--points", points, folder, check=False)
        try:
            value = json.loads(ended.stdout)
        except ValueError:
            raise SystemExit(f"verify {folder} ended with {ended.returncode}: {ended.stderr}") from None
        return value

    def newest(self, folder):
        value = self.replica(folder)
        return sorted(disk["blake3"] for disk in value["points"][-1]["disks"]) if value["points"] else None


def offline(engine, judge, folder):
    """What needs nobody else: the program starts, and reads images as the one for Linux does."""
    version = engine.run("--version").stdout.split()
    step("it starts and says its version", version[0] == "siterecovery-engine" and len(version) == 2, version)
    start = time.monotonic()
    engine.run("--version")
    print(f"   start of the program, with Wine's own part: {time.monotonic() - start:.2f} s", flush=True)
    for path in sorted((folder / "vms").rglob("*.vhd*")):
        here = json.loads(run(judge.program, "inspect", "--json", path).stdout)
        there = json.loads(engine.run("inspect", "--json", windows(path)).stdout)
        for value in (here, there):
            value.pop("path", None)
        step(f"inspect says of {path.name} what it says on Linux", here == there, (here, there))
        whole = json.loads(engine.run("verify", "--json", windows(path)).stdout)
        step(f"verify reads the same bytes of {path.name}", whole["sound"] and whole["blake3"] == judge.image(path), whole)
    listed = json.loads(engine.run("vm", "list", "--json", "--vm-folder", windows(folder / "vms")).stdout)
    names = [vm["name"] for vm in listed["virtualMachines"]]
    step("the images of a folder are virtual machines", names == ["db01.vhd", "web01"], listed)
    wrong = folder / "wrong.toml"
    wrong.write_text(engine.config.read_text() + "recovery_role = true\n")
    refused = engine.run("run", "--config", windows(wrong), check=False)
    step("a role that Windows can't have is refused with what to do", refused.returncode == 1 and "Linux host" in refused.stderr, refused)
    wrong.write_text(engine.config.read_text() + "driver = 'hyperv'\n")
    refused = engine.run("run", "--config", windows(wrong), check=False)
    told = "the Hyper-V role is not installed" in refused.stderr and "0x8004100E" in refused.stderr
    step("the hyperv driver is refused on a host without that role, with what to do", refused.returncode == 1 and told, refused)


def replicate_alone(engine, judge, folder):
    """Without an orchestrator: a folder is replicated, and again after a change."""
    store = folder / "alone"
    store.mkdir()
    words = ("replicate", windows(folder / "vms"), "--store", windows(store), "--vm", "web01", "--state", windows(folder / "state"))
    first = json.loads(engine.run(*words, "--json").stdout)
    (replica,) = (store / "files").iterdir()
    step("images of a folder are replicated without an orchestrator", judge.newest(replica) == judge.images(), first)
    step("its replica is sound in every file", judge.replica(replica, "all")["sound"])


def with_orchestrator(machine, engine, judge, folder, api):
    """The way of a host: key, service, mutual TLS, protection, points, kill, power cut."""
    vault = f"{api.group}/Microsoft.RecoveryServices/vaults/vault"
    api.done("PUT", vault, {"location": "northeurope", "sku": {"name": "RS0"}, "properties": {}})
    site = f"{vault}/replicationFabrics/site"
    api.done("PUT", site, {"properties": {"customDetails": {"instanceType": "HyperVSite"}}})
    store = folder / "store"
    store.mkdir()
    account = f"{api.group}/Microsoft.Storage/storageAccounts/account"
    api.done("PUT", account, {"location": "northeurope", "sku": {"name": "Standard_LRS"}, "properties": {"folder": windows(store)}})
    network = f"{api.group}/Microsoft.Network/virtualNetworks/net"
    subnet = {"name": "front", "properties": {"addressPrefix": "10.0.0.0/24"}}
    api.done("PUT", network, {"location": "northeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}, "subnets": [subnet]}})
    policy = f"{vault}/replicationPolicies/policy"
    settings = {"instanceType": "HyperVReplicaAzure", "recoveryPointHistoryDuration": 4, "replicationInterval": 5}
    api.done("PUT", policy, {"properties": {"providerSpecificInput": settings}})
    key = api.call("POST", f"{site}/registrationKeys", {"properties": {"validityInHours": 1}}).json()
    key_file = folder / "registration.key"
    key_file.write_text(key["properties"]["key"])

    missing = engine.service("start", "--config", windows(engine.config), check=False)
    step("a service that is not there can't be started", missing.returncode == 1 and "service install" in missing.stderr, missing)
    engine.service("install", "--config", windows(engine.config))
    again = engine.service("install", "--config", windows(engine.config)).stdout
    step("the service is installed, and once more without harm", "changed" in again, again)
    begin = time.monotonic()
    said = engine.service("start", "--config", windows(engine.config)).stdout
    step("the service starts and its engine answers on a named pipe", "is running" in said, said)
    print(f"   from `service start` to an answer: {time.monotonic() - begin:.1f} s")

    host = wait("the host is connected over mutual TLS", 60, lambda: connected(api, site))
    step("it is a Windows host", host["properties"]["friendlyName"] == "HV01", host)
    step("the registration key is gone when it was used", not key_file.exists())
    process = engine.process()
    step("the engine runs as a process of the service manager", process is not None)
    memory = re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{process}/status").read_text())
    print(f"   resident memory of the connected engine: {int(memory.group(1)) / 1024:.0f} MiB")

    (container,) = api.get(f"{site}/replicationProtectionContainers")["value"]
    container = container["id"]
    mapping = {"properties": {"policyId": policy, "targetProtectionContainerId": "Microsoft Azure"}}
    api.done("PUT", f"{container}/replicationProtectionContainerMappings/map", mapping)

    def protectable():
        items = api.get(f"{container}/replicationProtectableItems")["value"]
        return next((item for item in items if item["properties"]["friendlyName"] == "web01"), None)

    vm = wait("its virtual machines can be protected", 30, protectable)
    item = f"{container}/replicationProtectedItems/{vm['name']}"
    details = {
        "instanceType": "HyperVReplicaAzure",
        "hvHostVmId": vm["name"],
        "targetStorageAccountId": account,
        "targetAzureNetworkId": network,
        "targetAzureSubnetId": "front",
    }
    api.done("PUT", item, {"properties": {"policyId": policy, "protectableItemId": vm["id"], "providerSpecificDetails": details}})
    wait("the virtual machine is protected", 120, lambda: api.get(item)["properties"]["protectionState"] == "Protected")
    replica = wait("its replica is in the store", 60, lambda: next((path.parent for path in store.rglob("manifest*") if path.is_file()), None))
    wait("its newest point is what the images hold", 60, lambda: judge.newest(replica) == judge.images())

    write(folder / "vms/web01/os.vhdx", "vhdx", 5 * MIB, 192 * 1024, 0xA5)
    wait("a change of an image is in a later point", 60, lambda: judge.newest(replica) == judge.images())
    before = newest_position(judge, replica)
    sent = engine.status()["replications"][0]["totalSentBytes"]
    step("the first copy was sent whole", sent > 10 * MIB, sent)

    os.kill(engine.process(), signal.SIGKILL)
    wait("the killed engine is gone", 20, lambda: engine.process() is None)
    write(folder / "vms/web01/data.vhdx", "vhdx", 20 * MIB, 64 * 1024, 0x5A)
    said = engine.service("start", "--config", windows(engine.config)).stdout
    step("the service starts again after a kill", "is running" in said, said)
    wait("it goes on where it was: a later point has what was changed meanwhile", 90, lambda: newest_position(judge, replica) > before and judge.newest(replica) == judge.images())
    wait("the orchestrator sees it again", 60, lambda: connected(api, site))
    again = engine.status()["replications"][0]["totalSentBytes"]
    step("what was there before the kill was not sent again", again % sent < MIB, (sent, again))
    step("nobody enrolled a second time", len(api.get(f"{site}/replicationRecoveryServicesProviders")["value"]) == 1)
    sound = judge.replica(replica, "all")
    step("every file and every point of the replica is sound", sound["sound"] and len(sound["points"]) >= 2, sound["damaged"])
    status = engine.status()
    states = [one["state"] for one in status["replications"]]
    step("status tells of it through the pipe", states == ["PROTECTED"] and status["connected"], status)

    machine.turn_off()
    write(folder / "vms/web01/os.vhdx", "vhdx", 40 * MIB, 64 * 1024, 0x3C)
    before = newest_position(judge, replica)
    machine.turn_on()
    wait("after a power cut the service starts with the machine and goes on", 120, lambda: newest_position(judge, replica) > before and judge.newest(replica) == judge.images())

    engine.service("stop")
    wait("a stopped service leaves no process", 20, lambda: engine.process() is None)
    step("the engine ended in order", "engine has stopped" in engine.log().splitlines()[-1], engine.log()[-2000:])
    step("status of an engine that does not run has exit code 3", engine.run("status", "--config", windows(engine.config), check=False).returncode == 3)
    said = engine.service("delete").stdout + engine.service("delete").stdout
    step("the service is deleted, and once more without harm", "is deleted" in said and "there is no service" in said, said)


def connected(api, site):
    hosts = api.get(f"{site}/replicationRecoveryServicesProviders")["value"]
    return next((host for host in hosts if host["properties"]["connectionStatus"] == "Connected"), None)


def newest_position(judge, replica):
    points = judge.replica(replica)["points"]
    return points[-1]["position"] if points else -1


def main(programs, program):
    with tempfile.TemporaryDirectory(prefix="siterecovery-windows-") as name:
        folder = pathlib.Path(name)
        (folder / "vms/web01").mkdir(parents=True)
        image(folder / "vms/web01/os.vhdx", 64 * MIB, "vhdx", 1)
        image(folder / "vms/web01/data.vhdx", 48 * MIB, "vhdx", 2)
        image(folder / "vms/db01.vhd", 32 * MIB, "vpc", 3)
        machine = Machine()
        engine = Engine(program, folder)
        judge = Judge(programs / "siterecovery-engine", folder / "vms/web01")
        orchestrator = None
        # What a run that was killed left.
        engine.service("delete", check=False)
        try:
            offline(engine, judge, folder)
            replicate_alone(engine, judge, folder)
            log = open(folder / "orchestrator.log", "wb")
            orchestrator = subprocess.Popen(
                [
                    programs / "siterecovery-orchestrator", "serve", "--data", folder / "data", "--listen", free_address(),
                    "--gateway", free_address(), "--write-admin-env", folder / "admin.env", "--ready-file", folder / "ready",
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
            wait("the orchestrator is ready", 30, (folder / "ready").exists)
            lines = (shlex.split(line) for line in (folder / "admin.env").read_text().splitlines() if line.startswith("export "))
            api = Api(dict(line[1].split("=", 1) for line in lines))
            with_orchestrator(machine, engine, judge, folder, api)
            print(f"{steps} promises hold")
        except BaseException:
            print("── end of the engine's log", engine.log()[-6000:], sep="\n", file=sys.stderr)
            raise
        finally:
            engine.service("delete", check=False)
            if orchestrator:
                orchestrator.terminate()
                orchestrator.wait(timeout=20)
            machine.turn_off()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve())
