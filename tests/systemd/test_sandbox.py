"""What the services can do inside their sandbox, and what they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distreal_edge import Engine, zoo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

UNITS = ("distreal-edge-device.service", "distreal-edge-aggregator.service")

CAN = """
import json, os, socket, threading
import numpy as np, psutil
from distreal_edge import Engine, zoo
from distreal_edge.pulse import Pulse

said = {}
said["cpus"] = len(psutil.cpu_times(percpu=True))
said["busy"] = psutil.cpu_times().user > 0
said["memory"] = psutil.virtual_memory().available > 0
said["own"] = psutil.Process().cpu_times().user > 0
allowed = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(allowed)})
said["one"] = len(os.sched_getaffinity(0))
os.sched_setaffinity(0, allowed)
said["affinity"] = os.sched_getaffinity(0) == allowed
os.setpriority(os.PRIO_PROCESS, 0, 19)
said["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
said["policy"] = os.sched_getscheduler(0)
process = psutil.Process()
process.ionice(psutil.IOPRIO_CLASS_IDLE)
said["ionice"] = int(process.ionice().ioclass)
said["localhost"] = socket.getaddrinfo("localhost", 1883)[0][4][0] in {"127.0.0.1", "::1"}
said["cgroup"] = bool(open("/proc/self/cgroup").read())
pulse = Pulse()
with pulse.working():
    said["pulse"] = pulse.sign().wanting
engine = Engine(zoo.resnet8(), backend="native")
images = np.random.default_rng(1).random((8, 3, 32, 32), dtype=np.float32)
labels = np.arange(8)
subset = zoo.resnet8().draw([0.5] * len(zoo.resnet8().groups), np.random.default_rng(2))
said["losses"] = [engine.step(images, labels, subset, lr=0.1, threads=2) for _ in range(3)]
with open(os.environ["STATE_DIRECTORY"] + "/probe", "w") as file:
    file.write("x")
os.unlink(file.name)
said["credentials"] = {
    name: open(os.path.join(os.environ["CREDENTIALS_DIRECTORY"], name)).read()
    for name in os.listdir(os.environ["CREDENTIALS_DIRECTORY"])
}
said["user"] = os.getuid() != 0
print(json.dumps(said))
"""

CANNOT = """
import ctypes, json, mmap, os, pathlib, resource, socket

libc = ctypes.CDLL(None, use_errno=True)

def refused(attempt):
    try:
        return not attempt()
    except OSError:
        return True

def sees(path):
    return any(pathlib.Path(path).iterdir())

print(json.dumps({
    "write": refused(lambda: open("/etc/distreal-edge/new", "w")),
    "program": refused(lambda: open("/opt/new", "w")),
    "shared /tmp": refused(lambda: os.path.exists("/tmp/outside")),
    "homes": refused(lambda: sees("/home") or sees("/root")),
    "keys": refused(lambda: open("/etc/distreal-edge/tls/ca.pem")),
    "raw packets": refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "mount": refused(lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0),
    "namespaces": refused(lambda: libc.unshare(0x10000000) == 0),
    "real time": refused(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or True),
    "made code": refused(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "other processes": refused(lambda: os.path.exists("/proc/1/status")),
    "devices": refused(lambda: os.path.exists("/dev/kmsg")),
    "core dump": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
    "setuid": refused(lambda: os.setuid(0) is None),
}))
"""


@pytest.mark.parametrize("unit", UNITS)
def test_resources_and_kernels_work_inside(machine: Any, sandboxed: Any, unit: str) -> None:
    machine.write("/etc/distreal-edge/tls/ca.pem", "a certificate")
    machine.container.path("/etc/distreal-edge/tls/ca.pem").chmod(0o600)

    said = sandboxed(unit, CAN)

    machine.container.path("/etc/distreal-edge/tls/ca.pem").unlink()
    network = zoo.resnet8()
    engine = Engine(network, backend="native")
    images = np.random.default_rng(1).random((8, 3, 32, 32), dtype=np.float32)
    subset = network.draw([0.5] * len(network.groups), np.random.default_rng(2))
    losses = [engine.step(images, np.arange(8), subset, lr=0.1, threads=2) for _ in range(3)]
    assert said.pop("losses") == losses
    assert said.pop("cpus") >= 1
    assert said == {
        "busy": True, "memory": True, "own": True, "one": 1, "affinity": True, "nice": 19, "policy": 5, "ionice": 3,
        "localhost": True, "cgroup": True, "pulse": True, "credentials": {"tls_ca.pem": "a certificate"}, "user": True,
    }  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_else_of_the_machine_is_within_reach(machine: Any, sandboxed: Any, unit: str) -> None:
    machine.write("/home/owner/diary", "private")
    machine.write("/tmp/outside", "private")
    machine.write("/etc/distreal-edge/tls/ca.pem", "a certificate")

    said = sandboxed(unit, CANNOT)

    assert [attempt for attempt, was_refused in said.items() if not was_refused] == []
