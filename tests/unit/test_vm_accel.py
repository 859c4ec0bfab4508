from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vmdebug.arch import by_name
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, HostError
from vmdebug.guest_options import Accel
from vmdebug.progress import Step
from vmdebug.vm import accel
from vmdebug.vm.accel import Choice, Host, Subject

X86_64 = by_name("x86_64")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that seems to support KVM, with a private cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "kvm").touch()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu vme vmx sse\n")
    (tmp_path / "boot_id").write_text("4e19b3f0\n")
    return Host(tmp_path / "kvm", tmp_path / "cpuinfo", tmp_path / "boot_id")


def subject(tmp_path: Path, script: str) -> Subject:
    """A shell script as QEMU, and a kernel."""
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho booted >> {tmp_path}/boots\n{script}\n")
    qemu.chmod(0o755)
    (tmp_path / "bzImage").touch()
    return Subject(qemu, X86_64, tmp_path / "bzImage")


def boots(tmp_path: Path) -> int:
    log = tmp_path / "boots"
    return len(log.read_text().splitlines()) if log.exists() else 0


def choose(asked: Accel, of: Subject, host: Host, seconds: float = 20) -> Choice:
    def report(step: Step) -> None:
        assert step.what == "trying KVM"

    return accel.choose(asked, of, report=report, deadline=Deadline.after(seconds), host=host)


LINE = "echo 'SeaBIOS'; echo '[    0.000000] Linux version 6.1.0 (a@b)'; exec tail -f /dev/null"
SILENT = "exec tail -f /dev/null"


def test_tcg_is_not_questioned(tmp_path: Path, host: Host) -> None:
    assert choose("tcg", subject(tmp_path, LINE), host) == Choice("tcg", "asked for")
    assert boots(tmp_path) == 0


@pytest.mark.parametrize("asked", ["auto", "kvm"])
def test_a_kernel_that_speaks_is_the_proof(tmp_path: Path, host: Host, asked: Accel) -> None:
    choice = choose(asked, subject(tmp_path, LINE), host)
    assert choice.accel == "kvm"
    assert choice.reason.startswith("the kernel printed its first message after ")


def test_the_proof_is_remembered_for_this_boot(tmp_path: Path, host: Host) -> None:
    of = subject(tmp_path, LINE)
    assert choose("auto", of, host) == choose("auto", of, host)
    assert boots(tmp_path) == 1
    host.boot_id.write_text("another\n")
    choose("auto", of, host)
    assert boots(tmp_path) == 2
    of.image.write_text("another kernel")
    choose("auto", of, host)
    assert boots(tmp_path) == 3


def test_a_silent_kernel_means_tcg_and_is_remembered(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "FIRST_LINE_SECONDS", 0.3)
    of = subject(tmp_path, SILENT)
    for _ in range(2):
        assert choose("auto", of, host) == Choice(
            "tcg", "no KVM: with KVM the kernel printed nothing for 0.3 s"
        )
    assert boots(tmp_path) == 1
    monkeypatch.setattr(accel, "FIRST_LINE_SECONDS_IF_ASKED", 0.6)
    with pytest.raises(HostError, match=r"printed nothing for 0\.6 s") as caught:
        choose("kvm", of, host)
    assert 'accel="tcg"' in caught.value.hint
    assert boots(tmp_path) == 2, "whoever asks for KVM waits longer"


@pytest.mark.parametrize(
    "words",
    [
        "KVM: entry failed, hardware error 0x80000021",
        "KVM internal error. Suberror: 1",
        "error: kvm run failed Function not implemented",
    ],
)
def test_kvm_that_opens_but_cannot_run_the_guest_means_tcg(tmp_path: Path, host: Host, words: str) -> None:
    """QEMU does not end: the guest's state is internal-error."""
    of = subject(tmp_path, f"echo SeaBIOS; echo '{words}' >&2; exec tail -f /dev/null")
    for _ in range(2):
        choice = choose("auto", of, host)
        assert choice == Choice("tcg", f"no KVM: it opens, but cannot run a guest: {words}")
    assert boots(tmp_path) == 1
    with pytest.raises(HostError) as caught:
        choose("kvm", of, host)
    assert words in caught.value.message
    assert "dmesg" in caught.value.hint


def test_a_probe_that_is_cut_short_proves_nothing(tmp_path: Path, host: Host) -> None:
    of = subject(tmp_path, SILENT)
    with pytest.raises(DeadlineError):
        choose("auto", of, host, seconds=0.3)
    assert choose("auto", subject(tmp_path, LINE), host).accel == "kvm"


def test_a_qemu_that_ends_tells_why_and_is_asked_again(tmp_path: Path, host: Host) -> None:
    of = subject(tmp_path, "echo 'ioctl(KVM_CREATE_VM) failed: Device or resource busy' >&2; exit 1")
    for _ in range(2):
        choice = choose("auto", of, host)
        assert choice.accel == "tcg"
        assert choice.reason.endswith("ioctl(KVM_CREATE_VM) failed: Device or resource busy")
    assert boots(tmp_path) == 2


def test_no_device(tmp_path: Path, host: Host) -> None:
    host.device.unlink()
    of = subject(tmp_path, LINE)
    choice = choose("auto", of, host)
    assert (choice.accel, choice.reason) == ("tcg", f"no KVM: {host.device} does not exist")
    with pytest.raises(HostError) as caught:
        choose("kvm", of, host)
    assert "modprobe" in caught.value.hint
    assert boots(tmp_path) == 0


def test_no_permission(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    of = subject(tmp_path, LINE)
    assert choose("auto", of, host).reason == f"no KVM: this user may not open {host.device}"
    with pytest.raises(HostError) as caught:
        choose("kvm", of, host)
    assert "usermod -aG kvm" in caught.value.hint


@pytest.mark.parametrize("cpuinfo", ["flags\t\t: fpu vme sse\n", "", "flags\n"])
def test_a_cpu_that_cannot(tmp_path: Path, host: Host, cpuinfo: str) -> None:
    host.cpuinfo.write_text(cpuinfo)
    of = subject(tmp_path, LINE)
    choice = choose("auto", of, host)
    assert choice.accel == "tcg"
    assert "the CPU has neither vmx nor svm" in choice.reason
    with pytest.raises(HostError) as caught:
        choose("kvm", of, host)
    assert "nested virtualisation" in caught.value.hint
    assert boots(tmp_path) == 0


def test_amds_flag_will_do(host: Host) -> None:
    host.cpuinfo.write_text("flags : fpu svm\n")
    assert accel.obstacle(X86_64, host) is None


def test_no_cpuinfo_is_no_flag(host: Host) -> None:
    host.cpuinfo.unlink()
    assert accel.obstacle(X86_64, host) is not None


def test_the_state_in_words_for_doctor(host: Host) -> None:
    assert "opens and the CPU supports it" in accel.kvm_state(host)
    with pytest.raises(HostError, match="does not exist"):
        accel.kvm_state(msgspec.structs.replace(host, device=Path("/nowhere")))


def test_a_missing_kernel_is_no_reason_to_fail_here(tmp_path: Path, host: Host) -> None:
    of = msgspec.structs.replace(subject(tmp_path, LINE), image=tmp_path / "nothing")
    choice = choose("auto", of, host)
    assert choice.accel == "tcg"
    assert str(tmp_path / "nothing") in choice.reason
