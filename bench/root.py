"""A Debian as root: its start against virtme-ng's, `cp` against scp, and a clone against a boot.

Both starts boot the builtin kernel with the same files: vmdebug from its image in the cache until `exec` has
run `true`, `vng --root` from a directory until `true` has run and its guest has halted. `cp` and scp, over
QEMU's user network, alternately copy the same 64 MiB of random bytes with the same guest. A boot is timed
until systemd has finished, and the clones are made of a guest in which it has finished.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figure import VMDEBUG, Figure, in_turn
from vmdebug import process, sources
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.vm import Vm, launch
from vmdebug.vm.clones.template import template

BYTES = 64 << 20
ROUNDS = 2
COPY_GOAL = 0.7
CLONE_GOAL = 1 / 15
START_GOAL = 0.5
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


_HALTED = b"reboot: System halted"


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
    return [_start(), *copies, _clone()]


def _start() -> Figure:
    """Time the commands as a user types them."""
    options = GuestOptions(root="debian:bookworm", root_image="never", memory=1024, accel="tcg")
    spec = sources.resolve(options, report=silent, deadline=_soon())
    assert spec.root is not None
    vng = process.find("vng", package="virtme-ng")
    size = ("--memory", "1G")
    baseline = (
        vng,
        "-r",
        spec.kernel.image,
        "--root",
        spec.root.location,
        "--disable-kvm",
        *size,
        "-v",
        "--",
        "true",
    )
    name = f"bench-{os.getpid()}"

    def start() -> float:
        begin = time.monotonic()
        ours = ("start", "builtin", "--name", name, "--root", "debian:bookworm", "--accel", "tcg", *size)
        process.run((VMDEBUG, *ours), deadline=_soon())
        try:
            process.run((VMDEBUG, "exec", name, "--", "true"), deadline=_soon())
            return time.monotonic() - begin
        finally:
            process.run((VMDEBUG, "stop", "--force", name), deadline=_soon())

    found = in_turn(start, lambda: _run_until_halted(baseline), rounds=ROUNDS)
    return Figure("root-start", *found, START_GOAL, "s", "vng --root DIR -- true")


def _run_until_halted(argv: Sequence[str | Path]) -> None:
    """Run vng, which wants a terminal, until its guest halts: without ACPI its QEMU does not end then."""
    words = ("script", "-qec", process.shell_line(argv, {}), "/dev/null")
    deadline, printed = _soon(), b""
    with process.spawn(words, stdout=process.PIPE) as child:
        assert child.stdout is not None
        while _HALTED not in printed:
            wait_ready(child.stdout.fileno(), seconds=deadline.left("vng's guest to halt"))
            more = os.read(child.stdout.fileno(), 4096)
            assert more, printed[-1000:]
            printed += more


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
