"""QEMU's options that record a guest, and the same options for its replay."""

from __future__ import annotations

from pathlib import Path

from vmdebug import arch
from vmdebug.vm import qcow2, recorded
from vmdebug.vm.features import Features
from vmdebug.vm.rundir import RunDir

RUN, NEW = RunDir(Path("/run/vmdebug/vm")), RunDir(Path("/run/vmdebug/vm-replay"))
REC = Path("/rec")
X86 = arch.by_name("x86_64")


def test_lines_that_are_recorded() -> None:
    words = recorded.lines(REC, RUN, X86, Features(uarts=("isa-serial",)))
    assert words == (
        "-chardev",
        "pipe,id=console0,path=/rec/console,logfile=/run/vmdebug/vm/console.log,logappend=on",
        "-serial",
        "chardev:console0",
        "-chardev",
        "pipe,id=shell-line,path=/rec/shell",
        "-serial",
        "none",
        "-serial",
        "none",
        "-serial",
        "chardev:shell-line",
    )


def test_the_clock_counts_instructions() -> None:
    assert recorded.clock(REC) == (
        "-icount",
        "shift=6,rr=record,rrfile=/rec/rr.log",
        "-global",
        "apic-common.vapic=off",
    )


def test_a_replay_has_the_same_machine_without_input() -> None:
    argv = (
        "/usr/bin/qemu",
        "-name",
        "vm,debug-threads=on",
        "-nodefaults",
        "-kernel",
        "/boot/vmlinuz",
        *recorded.lines(REC, RUN, X86, Features(uarts=("isa-serial",))),
        *recorded.clock(REC),
        "-icount",
        "shift=5,sleep=off",
        "-no-reboot",
        "-action",
        "panic=pause",
        "-plugin",
        "/p.so,socket=/run/vmdebug/vm/trace.sock",
        "-pidfile",
        "/run/vmdebug/vm/qemu.pid",
        "-S",
    )
    assert recorded.replayed(
        argv,
        qemu=Path("/opt/qemu"),
        name="vm-replay",
        run=RUN.path,
        rundir=NEW,
        log=Path("/elsewhere/rr.log"),
        moved={"/boot/vmlinuz": "/elsewhere/kernel"},
    ) == (
        "/opt/qemu",
        "-name",
        "vm-replay,debug-threads=on",
        "-nodefaults",
        "-kernel",
        "/elsewhere/kernel",
        "-chardev",
        "file,id=console0,path=/run/vmdebug/vm-replay/console.log,append=on",
        "-serial",
        "chardev:console0",
        "-chardev",
        "file,id=shell-line,path=/run/vmdebug/vm-replay/shell-line.out,append=on",
        "-serial",
        "none",
        "-serial",
        "none",
        "-serial",
        "chardev:shell-line",
        "-icount",
        "shift=6,rr=replay,rrfile=/elsewhere/rr.log",
        "-global",
        "apic-common.vapic=off",
        "-icount",
        "shift=5,sleep=off",
        "-no-reboot",
        "-action",
        "panic=none",
        "-pidfile",
        "/run/vmdebug/vm-replay/qemu.pid",
        "-S",
    )


def test_an_empty_image() -> None:
    image = qcow2.empty()
    assert image.startswith(b"QFI\xfb\0\0\0\x03")
    assert len(image) == 4 << 16
