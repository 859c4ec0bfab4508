"""drgn on a VM, without a guest: what is missing or wrong, and how much of the machine is used."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import cli_doubles, kernelfiles
from vmdebug import cli, extras, kimage
from vmdebug.deadline import Deadline
from vmdebug.drgn_program import live
from vmdebug.errors import DeadlineError, GuestDiedError, HostError, UsageError
from vmdebug.guest import Kernel
from vmdebug.vm import Vm, vmcoreinfo


def test_without_drgn_the_error_has_the_line_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    assert cli.status_of(["drgn", "-e", "1"]) == HostError.exit_status
    error = capsys.readouterr().err
    assert "vmdebug drgn needs drgn, which " in error
    assert "pip install 'vmdebug[drgn]'" in error


def test_drgn_is_imported_only_by_what_needs_it() -> None:
    code = "import sys, vmdebug.session, vmdebug.cli.status; print('drgn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
    extras.DRGN.need("a test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drgn", "one", "missing.py"], "there is no script missing.py"),
        (["drgn", "one", "x.py", "-e", "1"], "SCRIPT and -e exclude each other"),
        (["drgn", "no-such-vm"], "there is no VM named no-such-vm"),
    ],
)
def test_bad_input_has_a_reason(
    runtime: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.status_of(words) == UsageError.exit_status
    assert message in capsys.readouterr().err


def machine(directory: Path) -> Vm:
    made = cli_doubles.machine("one", "running", directory=directory)
    made.rundir.path.mkdir()
    return made


def test_a_vm_whose_qemu_has_ended(runtime: Path) -> None:
    with pytest.raises(GuestDiedError, match="QEMU of one has ended"):
        live._connected(machine(runtime).rundir.control, machine_of(runtime), Deadline.after(5))


def machine_of(directory: Path) -> Vm:
    return cli_doubles.machine("one", "running", directory=directory)


def test_a_socket_that_another_program_uses_is_not_waited_for_without_end(runtime: Path) -> None:
    made = machine(runtime)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(made.rundir.qmp))
        server.listen()
        with pytest.raises(DeadlineError, match=r"QEMU of one to answer at .*qmp\.sock"):
            live._connected(made.rundir.qmp, made, Deadline.after(0.2))


@pytest.mark.parametrize("places", [(), (0x1000,), (0x1000, 0x2000)])
def test_without_a_section_of_notes_the_banner_identifies_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: tuple[int, ...]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vmdebug.kimage.symbols.addresses", lambda *_: places)
    mark = kimage.fingerprint(kernelfiles.vmlinux(tmp_path / "vmlinux"))
    banner = f"Linux version {kernelfiles.BANNER}\n".encode()
    assert (mark.address, mark.data) == ((0x1000, banner) if len(places) == 1 else (0, b""))


class Monitor:
    """QEMU's monitor, with a kernel's memory."""

    def __init__(self, memory: dict[int, bytes]) -> None:
        self.memory = memory

    def __call__(self, command: str, **arguments: object) -> object:
        if command == "query-cpus-fast":
            return [{}, {}]
        line = str(arguments["command-line"])
        if line == "info registers -a":
            return "CPU#0\nCR0=80050033 CR2=0 CR3=0 CR4=00001ef0\nCPU#1\n"
        _, count, place = line.split()
        data = self.memory.get(int(place, 16), b"")[: int(count.strip("/xb"))]
        return " ".join(f"0x{each:02x}" for each in data) if arguments["cpu-index"] == 1 else "Cannot access"


PLACES = {
    "vmcoreinfo_data": (0x1000,),
    "vmcoreinfo_size": (0x1008,),
    "phys_base": (0x1010,),
    "init_top_pgt": (0x2000,),
    "init_uts_ns": (0x3000,),
}
SLIDE = 0x200000


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr("vmdebug.kimage.symbols.addresses", lambda _, name: PLACES.get(name, ()))
    monkeypatch.setattr("vmdebug.vm.kernel_address.slide", lambda *_, **__: SLIDE)
    return Kernel(
        arch="x86_64", image=tmp_path, origin="a test", vmlinux=tmp_path, build_id="ab12", release="6.1.0"
    )


def word(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_a_kernel_has_its_vmcoreinfo_in_memory(kernel: Kernel) -> None:
    text = b"OSRELEASE=6.1.0\nKERNELOFFSET=200000\n"
    memory = {SLIDE + 0x1000: word(0x9000), SLIDE + 0x1008: word(len(text)), 0x9000: text}
    assert vmcoreinfo.read(Monitor(memory), kernel, kaslr=True) == text


def test_a_kernel_without_vmcoreinfo_is_described_by_what_vmdebug_knows(kernel: Kernel) -> None:
    said = vmcoreinfo.read(Monitor({SLIDE + 0x1010: word(0x5000000)}), kernel, kaslr=True)
    assert said.decode().splitlines() == [
        "OSRELEASE=6.1.0",
        "BUILD-ID=ab12",
        "PAGESIZE=4096",
        "SYMBOL(init_uts_ns)=203000",
        "SYMBOL(swapper_pg_dir)=202000",
        f"NUMBER(phys_base)={0x5000000}",
        "SYMBOL(init_top_pgt)=202000",
        "NUMBER(pgtable_l5_enabled)=1",
        "KERNELOFFSET=200000",
        f"NUMBER(KERNEL_IMAGE_SIZE)={1 << 30}",
    ]
