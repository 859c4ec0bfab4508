"""Reports of real guests: a panic, a warning in a module, a hang, a killed QEMU."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmdebug
from vmdebug import cli, postmortem
from vmdebug.channel.log import death
from vmdebug.channel.log.trouble import Trouble
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.session import DebugSession

SECONDS = 120.0
PROVOKE = "/sys/kernel/debug/provoke-crash/DIRECT"


@pytest.fixture
def session() -> Iterator[DebugSession]:
    with vmdebug.start("builtin", accel="tcg", cpus=2) as started:
        started.exec("true", timeout=SECONDS)
        yield started


def provoked(session: DebugSession, line: str) -> tuple[Trouble, ...]:
    with Watcher(session.vm.rundir.console_log) as watcher:
        assert watcher.poll() == ()
        session.console.sendline(line)
        watcher.wait(Deadline.after(SECONDS))
        return watcher.settle(Deadline.after(SECONDS))


def collect(session: DebugSession, *troubles: Trouble, dump: Path | None = None) -> dict[str, str]:
    report = postmortem.collect(session, troubles=troubles, dump=dump, deadline=Deadline.after(SECONDS))
    return {section.title: section.text for section in report.sections}


def test_a_panic_with_its_source_lines_each_cpu_and_a_vmcore(session: DebugSession, tmp_path: Path) -> None:
    (trouble,) = provoked(session, "echo c >/proc/sysrq-trigger")
    assert trouble.kind == "panic"
    assert death.panicked(session.vm.rundir.console_log)
    _ = session.gdb

    found = collect(session, trouble, dump=tmp_path / "vmcore")
    assert re.search(r"panic\+\S+ \(kernel/panic\.c:\d+\)", found["kernel panic"])
    assert re.search(r"proc_reg_write\+\S+ \(fs/proc/inode\.c:\d+ in pde_write, ", found["kernel panic"])
    assert found["guest"].startswith("builtin: panicked, tcg\n")
    assert "Kernel panic - not syncing: sysrq triggered crash" in found["dmesg"]
    assert found["backtraces"].startswith("CPU 0: pid ")
    assert "\nCPU 1: pid " in found["backtraces"]
    assert re.search(r"in sysrq_handle_crash .* at drivers/tty/sysrq\.c:\d+", found["backtraces"])
    assert re.search(r"in entry_SYSCALL_64 \(\) at \S+:\d+(\n\n|$)", found["backtraces"])  # nothing after it
    assert "-target-select remote" in found["GDB"]
    assert (tmp_path / "vmcore").read_bytes()[:12] in (b"makedumpfile", b"KDUMP   \6\0\0\0")
    assert b"OSRELEASE=" in (tmp_path / "vmcore").read_bytes()  # the note of vmcoreinfo


@pytest.mark.parametrize("status", ["running", "paused", "panicked"])
def test_where_no_gdb_was_attached_all_is_as_it_was(session: DebugSession, status: str) -> None:
    if status == "paused":
        session.vm.pause()
    elif status == "panicked":
        provoked(session, "echo c >/proc/sysrq-trigger")

    found = collect(session)
    assert "CPU 0: pid " in found["backtraces"]
    assert found["GDB"] == "none was attached"
    assert session.status == status
    if status == "running":
        assert session.exec("echo on").stdout == "on\n"
    else:
        assert session.gdb.stopped  # attached now, and again


def test_a_session_leaves_a_guest_that_has_panicked(session: DebugSession) -> None:
    with DebugSession(session.vm, owned=False) as other:
        other.gdb.cont(wait=False)
        provoked(session, "echo c >/proc/sysrq-trigger")
    assert session.vm.qmp("query-status")["status"] == "guest-panicked"  # nothing has resumed it


def test_a_warning_in_a_module_and_the_guest_runs_on(session: DebugSession) -> None:
    (trouble,) = provoked(session, f"modprobe lkdtm; echo WARNING >{PROVOKE}")
    session.gdb.cont(wait=False)
    found = collect(session, trouble)
    line = r"lkdtm_WARNING\+\S+ \[lkdtm\] \(drivers/misc/lkdtm/bugs\.c:\d+\)"
    assert re.search(line, found["kernel warn"])
    assert "\nCPU 1: " in found["backtraces"]
    assert session.exec("echo $((6 * 7))").stdout == "42\n"


def test_the_log_out_of_memory_is_what_dmesg_prints(session: DebugSession) -> None:
    said = session.exec("dmesg", check=True).stdout
    with session.gdb.held():
        assert session.gdb.dmesg(limit=10_000) == said.rstrip("\n")
        assert session.gdb.dmesg(limit=2).splitlines() == said.splitlines()[-2:]


def test_dmesg_and_the_decoded_log_from_the_command_line(
    session: DebugSession, capsys: pytest.CaptureFixture[str]
) -> None:
    provoked(session, "echo c >/proc/sysrq-trigger")
    assert cli.status_of(["dmesg", "-n", "1000"]) == 0
    assert "Kernel panic - not syncing: sysrq triggered crash" in capsys.readouterr().out
    assert session.vm.qmp("query-status")["status"] == "guest-panicked"
    assert cli.status_of(["log", "--decode"]) == 0
    assert re.search(r"panic\+\S+ \(kernel/panic\.c:\d+\)", capsys.readouterr().out)


def test_any_text_with_the_trace_of_a_guest_is_decoded(
    session: DebugSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.exec(f"modprobe lkdtm; echo WARNING >{PROVOKE}", check=True)
    text = session.exec("dmesg", check=True).stdout  # a serial line may lose characters
    (tmp_path / "mail").write_text("".join(f"> {line}\n" for line in text.splitlines()))
    assert cli.status_of(["decode", str(tmp_path / "mail")]) == 0  # with the kernel of the running VM
    said = capsys.readouterr().out
    assert re.search(
        r"^> .*RIP: 0010:lkdtm_WARNING\+\S+ \[lkdtm\] \(drivers/misc/lkdtm/bugs\.c:\d+\)$", said, re.MULTILINE
    )
    assert re.search(r"^> .* vfs_write\+\S+ \(fs/read_write\.c:\d+\)$", said, re.MULTILINE)
    assert re.search(r"^--> lkdtm_WARNING\+0x\w+ +0f 0b +ud2$", said, re.MULTILINE)


def test_where_in_a_module_a_cpu_hangs(session: DebugSession) -> None:
    session.exec("modprobe lkdtm", check=True)
    session.console.sendline(f"echo SOFTLOCKUP >{PROVOKE}")
    session.console.expect("Performing direct entry SOFTLOCKUP", timeout=SECONDS)
    found = collect(session)
    assert re.search(r"lkdtm_SOFTLOCKUP \(\) at drivers/misc/lkdtm/bugs\.c:\d+", found["backtraces"])
    assert "vfs_write (" in found["backtraces"]


def test_tasks_that_wait_for_a_lock_and_the_task_that_holds_it(session: DebugSession) -> None:
    # The first writer sleeps with the lock of the open file that it shares with the second one.
    session.exec(
        f"modprobe lkdtm; exec 3>{PROVOKE}; (echo HUNG_TASK >&3) & sleep 1; (echo x >&3) & sleep 1",
        check=True,
    )
    found = collect(session)["blocked tasks"]
    (waits,) = re.findall(
        r"^pid \d+ \(sh\) waits for mutex 0x\w+, held by pid (\d+) \(sh\)$", found, re.MULTILINE
    )
    assert re.search(
        rf"^pid {waits} \(sh\)\n(?:#.*\n)*#.* lkdtm_HUNG_TASK \(drivers/misc/lkdtm/", found, re.MULTILINE
    )


def test_of_a_killed_qemu_the_logs_are_left(session: DebugSession) -> None:
    qemu = session.vm.state.qemu
    qemu.signal(signal.SIGKILL)
    assert qemu.wait(SECONDS)
    found = collect(session)
    assert list(found) == ["guest", "console", "QEMU"]
    assert found["guest"].startswith("builtin: exited")
    assert "vmdebug: guest ready" in found["console"]
