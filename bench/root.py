"""`cp` and `clone` with a Debian as root, against scp over QEMU's user network and against a boot.

`cp` and scp alternately copy the same 64 MiB of random bytes with the same guest. A boot is timed until
systemd has finished, and the clones are made of a guest in which it has finished.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from bench.figure import Figure, in_turn
from vmdebug import process, sources
from vmdebug.deadline import Deadline
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.vm import Vm, launch
from vmdebug.vm.clones.template import template

BYTES = 64 << 20
ROUNDS = 2
COPY_GOAL = 0.7
CLONE_GOAL = 1 / 15
SECONDS = 1800.0

_UP = "until [ -S /run/systemd/private ]; do sleep 0.2; done; systemctl is-system-running --wait"
_NETWORK = """\
set -e
for path in /sys/class/net/e*; do card=${path##*/}; done
ip link set $card up
ip addr add 10.0.2.15/24 dev $card
ip route add default via 10.0.2.2
mkdir -p -m 700 /root/.ssh
"""
"""The addresses of QEMU's user network; see qemu(1), `-netdev user`."""


def figures() -> list[Figure]:
    """Time all three."""
    with tempfile.TemporaryDirectory(prefix="vmd-") as name:
        directory = Path(name)
        port = _free_port()
        card = (
            "-netdev",
            f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device",
            "virtio-net-pci,netdev=n",
        )
        with _booted(GuestOptions(root="debian:bookworm", memory=1024, accel="tcg", qemu_args=card)) as vm:
            vm.exec(_UP, timeout=SECONDS)
            vm.exec(_NETWORK, timeout=SECONDS, check=True)
            copies = _copies(vm, directory, port)
    return [*copies, _clone()]


def _booted(options: GuestOptions) -> Vm:
    spec = sources.resolve(options, report=silent, deadline=_soon())
    return launch(spec, bound=True, exact_name=False, timeout=SECONDS)


def _copies(vm: Vm, directory: Path, port: int) -> list[Figure]:
    key, data, back = directory / "key", directory / "data", directory / "back"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], deadline=_soon())
    vm.put(key.with_suffix(".pub"), "/root/.ssh/authorized_keys")
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    scp = ("scp", "-q", "-i", str(key), "-P", str(port), *(word for each in options for word in ("-o", each)))
    by_scp, by_cp = "root@127.0.0.1:/root/by-scp", "/root/by-cp"
    data.write_bytes(os.urandom(BYTES))

    def copy(*words: str | Path) -> None:
        process.run([*scp, *words], deadline=_soon())

    into = in_turn(lambda: vm.put(data, by_cp), lambda: copy(data, by_scp), rounds=ROUNDS, warm_up=0)
    out = in_turn(lambda: vm.get(by_cp, back), lambda: copy(by_scp, back), rounds=ROUNDS, warm_up=0)
    assert back.read_bytes() == data.read_bytes()
    return [
        Figure(name, *found, COPY_GOAL, "s", "scp over QEMU's user network")
        for name, found in (("cp-in", into), ("cp-out", out))
    ]


def _clone() -> Figure:
    options = GuestOptions(root="debian:bookworm", memory=1024, accel="tcg")
    spec = sources.resolve(options, report=silent, deadline=_soon())

    def boot() -> None:
        with _booted(options) as vm:
            vm.exec(_UP, timeout=SECONDS)

    with template(spec, timeout=SECONDS) as made:

        def clone() -> None:
            with made.clone(name="clone", timeout=SECONDS) as vm:
                vm.exec("true", timeout=SECONDS)

        found = in_turn(clone, boot, rounds=ROUNDS)
    return Figure("root-clone", *found, CLONE_GOAL, "s", "its boot until systemd has finished")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _soon() -> Deadline:
    return Deadline.after(SECONDS)
