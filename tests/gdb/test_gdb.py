"""A real GDB on a real gdbstub: run control, breakpoints, inspection, and all ways to end."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.bareguest import Bare, soon
from vmdebug.deadline import Deadline
from vmdebug.debugger import stop
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.ownership import VmOwner
from vmdebug.debugger.runstate import State
from vmdebug.debugger.transport import Answer
from vmdebug.errors import DeadlineError, GdbError, GuestDiedError, HostError, StateError, UsageError
from vmdebug.process import ProcessRef

QUICK = 30.0


def wait_until(gdb: Gdb, done: Callable[[], bool]) -> None:
    gdb._connection.wait(done, soon(), "the test's condition")


def ended(pid: int) -> bool:
    ref = ProcessRef.of(pid)
    return ref is None or ref.wait(20)


# Breakpoints and running


def test_connecting_stops_at_the_reset_vector(unconnected: Gdb, bare: Bare) -> None:
    assert unconnected.state is State.UNCONNECTED
    where = unconnected.connect(bare.endpoint)
    assert (where.reason, where.frame.pc, where.thread.cpu) == (stop.ATTACHED, 0xFFF0, 0)
    assert unconnected.stopped


def test_a_breakpoint_set_at_the_reset_vector_is_hit(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("main")
    where = gdb.cont(timeout=QUICK)
    assert where.reason == stop.BREAKPOINT
    assert where.breakpoint is breakpoint_
    assert where.frame.function == "main"
    assert where.frame.file.endswith("bare/main.c")
    assert where.frame.line > 0
    assert where.frame.pc == breakpoint_.address


def test_a_breakpoint_set_before_connecting_is_hit(unconnected: Gdb, bare: Bare) -> None:
    unconnected.breakpoint("main")
    unconnected.connect(bare.endpoint)
    assert unconnected.cont(timeout=QUICK).frame.function == "main"


def test_the_frames_of_a_stop(gdb: Gdb) -> None:
    gdb.breakpoint("step")
    where = gdb.cont(timeout=QUICK)
    assert [frame.function for frame in where.backtrace()[:3]] == ["step", "work", "main"]
    assert [frame.level for frame in where.backtrace(limit=2)] == [0, 1]
    first, second = str(where.backtrace(limit=2)).splitlines()
    assert first.startswith("#0  step at ")
    assert second.startswith("#1  work at ")


@pytest.mark.parametrize("where", ["step", "main.c:step", "*step"])
def test_places_as_gdb_writes_them(gdb: Gdb, where: str) -> None:
    gdb.breakpoint(where)
    assert gdb.cont(timeout=QUICK).frame.function == "step"


def test_an_address_is_a_place(gdb: Gdb) -> None:
    address = int(gdb.evaluate("step"))
    gdb.breakpoint(address)
    assert gdb.cont(timeout=QUICK).frame.pc == address


def test_a_condition_decides(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("work", when="k == 3")
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 3
    assert breakpoint_.hits == 1


def test_an_ignore_count_passes_hits_over(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("work", ignore=2)
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 2
    assert breakpoint_.hits == 3


def test_a_temporary_breakpoint_goes_with_its_stop(gdb: Gdb) -> None:
    once = gdb.breakpoint("step", temporary=True)
    then = gdb.breakpoint("without")
    assert gdb.cont(timeout=QUICK).breakpoint is once
    assert gdb.cont(timeout=QUICK).breakpoint is then
    assert gdb.cont(timeout=QUICK).breakpoint is then
    once.delete()


def test_a_breakpoint_of_a_block_is_gone_after_it(gdb: Gdb) -> None:
    with gdb.breakpoint("step") as breakpoint_:
        gdb.cont(timeout=QUICK)
    gdb.breakpoint("without")
    for _ in range(2):
        assert gdb.cont(timeout=QUICK).frame.function == "without"
    with pytest.raises(GdbError, match=f"no breakpoint {breakpoint_.number}"):
        _ = breakpoint_.hits


def test_a_breakpoint_for_one_cpu(gdb: Gdb) -> None:
    gdb.breakpoint("main", temporary=True)
    gdb.cont(timeout=QUICK)
    gdb.breakpoint("step", cpu=1)
    gdb.breakpoint("without", cpu=0)
    assert gdb.cont(timeout=QUICK).frame.function == "without"


def test_a_breakpoint_that_a_command_has_set_is_reported(gdb: Gdb) -> None:
    gdb.console("break step")
    hit = gdb.cont(timeout=QUICK).breakpoint
    assert hit is not None
    assert hit.number == 1


def test_a_hardware_breakpoint(gdb: Gdb) -> None:
    gdb.breakpoint("main", hardware=True)
    assert gdb.cont(timeout=QUICK).frame.function == "main"


def test_running_out_of_hardware_breakpoints_says_so(gdb: Gdb) -> None:
    gdb.console("set remote hardware-breakpoint-limit 1")
    gdb.breakpoint("main", hardware=True)
    with pytest.raises(GdbError, match="no hardware breakpoint or watchpoint is left") as raised:
        gdb.breakpoint("step", hardware=True)
    assert "the CPU's debug registers" in raised.value.hint


def test_a_watchpoint_says_what_changed(gdb: Gdb) -> None:
    gdb.breakpoint("work", when="k == 1", temporary=True)
    gdb.cont(timeout=QUICK)
    old = gdb.evaluate("watched")
    watchpoint = gdb.watchpoint("watched")
    where = gdb.cont(timeout=QUICK)
    assert (where.reason, where.breakpoint) == (stop.WATCHPOINT, watchpoint)
    new = gdb.evaluate("watched")
    assert where.details["value"] == {"old": str(int(old)), "new": str(int(new))}


def test_no_such_symbol_names_it_and_says_what_it_may_be(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match='a breakpoint at nosuch: Function "nosuch" not defined') as raised:
        gdb.breakpoint("nosuch")
    assert "pending=True" in raised.value.hint
    assert gdb.breakpoint("nosuch", pending=True).address == 0


def test_a_condition_that_cannot_be_evaluated(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match='No symbol "q" in current context'):
        gdb.breakpoint("step", when="q == 1")


def test_steps(gdb: Gdb) -> None:
    gdb.breakpoint("work", temporary=True)
    assert gdb.cont(timeout=QUICK).frame.function == "work"
    into = gdb.step(timeout=QUICK)
    assert (into.reason, into.frame.function) == (stop.STEPPED, "step")
    back = gdb.finish(timeout=QUICK)
    assert (back.reason, back.frame.function) == (stop.FINISHED, "work")
    assert back.details["return-value"] == "1"
    over = gdb.next(timeout=QUICK)
    assert over.frame.function == "work"
    one = gdb.stepi(timeout=QUICK)
    assert one.frame.pc != over.frame.pc
    caller = gdb.backtrace()[1]
    there = gdb.until(caller.pc, timeout=QUICK)
    assert (there.reason, there.frame.pc) == (stop.REACHED, caller.pc)


# Running and stopping


def test_the_guest_is_stepped_off_its_breakpoint_unless_gdb_has_moved_it(
    gdb: Gdb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM loses a step from a PC that GDB has changed (`__kvm_set_rflags` in arch/x86/kvm/x86.c)."""
    sent: list[str] = []
    execute = gdb._connection.execute

    def executed(command: str, deadline: Deadline) -> Answer:
        if command.startswith("-exec"):
            sent.append(command.split(maxsplit=1)[0])
        return execute(command, deadline)

    gdb.breakpoint("step")
    monkeypatch.setattr(gdb._connection, "execute", executed)
    gdb.cont(timeout=QUICK)
    gdb.cont(timeout=QUICK)
    assert sent == ["-exec-continue", "-exec-step-instruction", "-exec-continue"]
    gdb.console("return 1")
    gdb.cont(timeout=QUICK)
    assert sent[3:] == ["-exec-continue"]


def test_running_without_waiting_and_a_stop_that_nobody_waited_for(gdb: Gdb) -> None:
    gdb.breakpoint("step")
    gdb.cont(wait=False)
    wait_until(gdb, lambda: gdb._connection.run.state is State.STOPPED)
    assert gdb.wait_stop(timeout=QUICK).frame.function == "step"


def test_a_stop_is_seen_once(gdb: Gdb) -> None:
    gdb.breakpoint("step")
    gdb.cont(timeout=QUICK)
    for call in (gdb.wait_stop, gdb.interrupt):
        with pytest.raises(StateError, match="needs a guest that is running; it is stopped") as raised:
            call()
        assert "cont()" in raised.value.hint


def test_an_interrupt(gdb: Gdb) -> None:
    gdb.cont(wait=False)
    assert gdb.state is State.RUNNING
    where = gdb.interrupt(timeout=QUICK)
    assert (where.reason, where.signal) == (stop.SIGNAL, "SIGINT")
    assert gdb.stopped


def test_an_interrupt_from_outside(unconnected: Gdb, bare: Bare) -> None:
    unconnected.connect(bare.endpoint, interrupter=lambda: bare.qmp("stop"))
    for _ in range(3):
        unconnected.cont(wait=False)
        assert unconnected.interrupt(timeout=QUICK).signal == "SIGINT"


def test_an_interrupt_while_conditions_keep_gdb_busy(gdb: Gdb) -> None:
    gdb.breakpoint("step", when="k == 77")
    for _ in range(5):
        gdb.cont(wait=False)
        assert gdb.interrupt(timeout=QUICK).signal == "SIGINT"


def test_an_interrupt_from_another_thread(gdb: Gdb) -> None:
    gdb.cont(wait=False)
    stops: list[stop.Stop] = []

    def take(call: Callable[..., stop.Stop]) -> None:
        with contextlib.suppress(StateError):
            stops.append(call(timeout=QUICK))

    waiter = threading.Thread(target=take, args=(gdb.wait_stop,))
    waiter.start()
    take(gdb.interrupt)
    waiter.join(QUICK)
    assert [each.signal for each in stops] == ["SIGINT"]  # either of the two received it


def test_a_passed_deadline_leaves_gdb_usable(gdb: Gdb) -> None:
    with pytest.raises(DeadlineError, match="the guest to stop, in cont") as raised:
        gdb.cont(timeout=0.1)
    assert "interrupt()" in raised.value.hint
    gdb.interrupt(timeout=QUICK)
    assert gdb.evaluate("1 + 1") == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda gdb: gdb.cont(),
        lambda gdb: gdb.step(),
        lambda gdb: gdb.threads(),
        lambda gdb: gdb.backtrace(),
        lambda gdb: gdb.frame(),
        lambda gdb: gdb.select(1),
        lambda gdb: gdb.evaluate("1"),
        lambda gdb: gdb.per_cpu("counter", 0),
    ],
)
def test_what_needs_a_stopped_guest_says_so_at_once(gdb: Gdb, call: Callable[[Gdb], object]) -> None:
    gdb.cont(wait=False)
    with pytest.raises(StateError, match=r"needs a guest that is stopped.*; it is running") as raised:
        call(gdb)
    assert "interrupt()" in raised.value.hint


def test_what_needs_a_guest_says_so_without_one(unconnected: Gdb) -> None:
    for call in (unconnected.cont, unconnected.interrupt, unconnected.threads, unconnected.detach):
        with pytest.raises(StateError, match="it is not connected"):
            call()


def test_connecting_twice_is_refused(gdb: Gdb, bare: Bare) -> None:
    with pytest.raises(StateError, match="it is stopped"):
        gdb.connect(bare.endpoint)


def test_a_breakpoint_set_in_a_running_guest_leaves_it_running(gdb: Gdb) -> None:
    gdb.cont(wait=False)
    with gdb.breakpoint("step", when="k == 77"):
        assert gdb.state is State.RUNNING
        breakpoint_ = gdb.breakpoint("without")
        assert gdb.wait_stop(timeout=QUICK).breakpoint is breakpoint_
        breakpoint_.delete()
        gdb.cont(wait=False)
    assert gdb.state is State.RUNNING


# Inspection


def test_the_cpus_are_threads(gdb: Gdb) -> None:
    assert [(thread.id, thread.cpu) for thread in gdb.threads()] == [(1, 0), (2, 1)]
    assert gdb.threads()[1].name.startswith("CPU#1")


def test_selecting_a_cpu_and_a_frame(gdb: Gdb) -> None:
    gdb.breakpoint("step", when="k == 4")
    gdb.cont(timeout=QUICK)
    assert gdb.select(frame=2).function == "main"
    assert gdb.frame().function == "main"
    outer = gdb.backtrace()[1]
    assert gdb.select(frame=outer).function == "work"
    assert gdb.evaluate("k") == 4
    assert gdb.select(cpu=1).thread.cpu == 1
    assert gdb.select(cpu=0).function == "step"


def test_a_frame_answers_whatever_is_selected(gdb: Gdb) -> None:
    gdb.breakpoint("step", when="k == 4")
    where = gdb.cont(timeout=QUICK)
    gdb.select(cpu=1)
    assert int(where.frame.arg("k")) == 4
    assert int(where.backtrace()[1].evaluate("k + 1")) == 5
    assert gdb.frame().thread.cpu == 1


def test_a_frame_of_an_earlier_stop_answers_no_more(gdb: Gdb) -> None:
    gdb.breakpoint("step")
    where = gdb.cont(timeout=QUICK)
    gdb.cont(timeout=QUICK)
    with pytest.raises(StateError, match="`k` in step: the guest has run since"):
        where.frame.arg("k")


def test_an_expression_that_cannot_be_evaluated_has_gdbs_words(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match="`nosuch` cannot be evaluated: No symbol"):
        gdb.evaluate("nosuch")


def test_a_frame_knows_its_arguments_from_its_locals(gdb: Gdb) -> None:
    gdb.breakpoint("step", when="k == 4")
    frame = gdb.cont(timeout=QUICK).frame
    assert frame.arg("task").pid == 1
    with pytest.raises(UsageError, match="`local` is not an argument of step") as raised:
        frame.arg("local")
    assert raised.value.hint == "its arguments: k, task; frame.evaluate() takes any expression"
    with pytest.raises(UsageError, match="`k` is not a local variable of step") as raised:
        frame.local("k")
    assert raised.value.hint == "its local variables: local; frame.evaluate() takes any expression"
    with pytest.raises(UsageError, match="`counter` is not an argument of step"):
        frame.arg("counter")
    with pytest.raises(UsageError, match="`task->pid` is not an argument of step"):
        frame.arg("task->pid")
    assert frame.evaluate("counter") > 0


def test_an_inner_block_hides_the_variables_around_it(gdb: Gdb) -> None:
    gdb.breakpoint("deepest", when="k == 40")
    frame = gdb.cont(timeout=QUICK).backtrace()[1]
    assert (frame.function, int(frame.arg("k")), int(frame.local("k"))) == ("hidden", 4, 40)


def test_a_frame_of_an_inlined_function_has_variables_of_its_own(gdb: Gdb) -> None:
    gdb.breakpoint("inlined")
    frame = gdb.cont(timeout=QUICK).frame
    assert (frame.function, int(frame.arg("task").pid)) == ("inlined", 1)
    with pytest.raises(UsageError, match="`k` is not an argument of inlined") as raised:
        frame.arg("k")
    assert raised.value.hint.startswith("its arguments: task;")


def test_a_frame_without_debug_information_has_no_variables(gdb: Gdb) -> None:
    frame = gdb.frame()
    assert frame.function == ""
    with pytest.raises(UsageError, match=f"`k` is not a local variable of {frame.pc:#x}") as raised:
        frame.local("k")
    assert raised.value.hint.startswith("it has no local variables that GDB knows;")


def test_a_command_as_a_person_types_it(gdb: Gdb) -> None:
    assert gdb.console("output 6 * 7") == "42"
    assert gdb.console(r'printf "a \"b\" ä\n"') == 'a "b" ä\n'


def test_a_command_that_gdb_refuses_is_named(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match='GDB refused `nosuch 1`: Undefined command: "nosuch"') as raised:
        gdb.console("nosuch 1")
    assert raised.value.words.startswith("Undefined command")


def test_symbols_are_there_without_a_guest(unconnected: Gdb) -> None:
    assert unconnected.evaluate("sizeof(struct list)") == 8
    assert int(unconnected.evaluate("first.pid")) == 1


# Ends


def test_detaching_lets_the_guest_run_without_breakpoints(gdb: Gdb, bare: Bare) -> None:
    gdb.breakpoint("step")
    gdb.cont(timeout=QUICK)
    gdb.detach()
    assert gdb.state is State.DETACHED
    assert bare.status() == "running"
    gdb.console("delete")
    before = counter(gdb, bare)
    while counter(gdb, bare) == before:  # on a busy host QEMU may not have run in between
        assert bare.status() == "running"


def counter(gdb: Gdb, bare: Bare) -> int:
    gdb.connect(bare.endpoint)
    try:
        return int(gdb.evaluate("counter"))
    finally:
        gdb.detach()


def test_detaching_a_running_guest(gdb: Gdb, bare: Bare) -> None:
    gdb.cont(wait=False)
    gdb.detach()
    assert bare.status() == "running"


def test_closing_detaches_and_ends_gdb(program: Path, bare: Bare) -> None:
    with Gdb.start(program) as gdb:
        gdb.connect(bare.endpoint)
        gdb.breakpoint("step")
        gdb.cont(wait=False)
        pid = gdb.pid
    assert ended(pid)
    assert bare.status() == "running"
    with pytest.raises(GdbError, match="GDB has ended"):
        gdb.evaluate("1")
    gdb.close()


def test_a_guest_that_powers_off(gdb: Gdb) -> None:
    gdb.breakpoint("main", temporary=True)
    gdb.cont(timeout=QUICK)
    gdb.evaluate("power_off = 1")
    with pytest.raises(GuestDiedError, match="cont: the guest has exited, or QEMU has ended"):
        gdb.cont(timeout=QUICK)
    with pytest.raises(GuestDiedError):
        gdb.threads()


def test_qemu_that_says_goodbye(gdb: Gdb, bare: Bare) -> None:
    gdb.cont(wait=False)
    bare.qmp("quit")
    with pytest.raises(GuestDiedError):
        gdb.wait_stop(timeout=QUICK)


def test_qemu_killed_while_the_guest_runs(gdb: Gdb, bare: Bare) -> None:
    gdb.cont(wait=False)
    bare.process.signal(signal.SIGKILL)
    with pytest.raises(GuestDiedError):
        gdb.wait_stop(timeout=QUICK)
    assert gdb.state is State.GONE


def test_qemu_killed_while_the_guest_stands(gdb: Gdb, bare: Bare) -> None:
    bare.process.signal(signal.SIGKILL)
    with pytest.raises(GuestDiedError):
        gdb.cont(timeout=QUICK)


def test_qemu_that_hangs_costs_a_deadline_and_no_more(gdb: Gdb, bare: Bare) -> None:
    gdb.cont(wait=False)
    bare.process.signal(signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineError, match="waited 0"):
            gdb.interrupt(timeout=0.2)
        pid = gdb.pid
        gdb.close(timeout=0.5)
        assert ended(pid)
    finally:
        bare.process.signal(signal.SIGCONT)


def test_gdb_killed(gdb: Gdb) -> None:
    os.kill(gdb.pid, signal.SIGKILL)
    # On a busy machine its end is read before the command is sent.
    with pytest.raises(GdbError, match=r"GDB (ended before it answered|has ended)"):
        gdb.evaluate("1")
    assert gdb.state is State.ENDED
    with pytest.raises(GdbError, match="cont: GDB has ended"):
        gdb.cont()


@pytest.mark.parametrize("running", [True, False])
def test_gdb_does_not_outlive_us(program: Path, bare: Bare, running: bool) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, program, bare.endpoint, str(running)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert ended(pid)
    assert bare.status() == "running"


OWNER = """
import sys, signal
from pathlib import Path
from vmdebug.debugger.gdb import Gdb
gdb = Gdb.start(Path(sys.argv[1]))
gdb.connect(sys.argv[2])
if sys.argv[3] == "True":
    gdb.cont(wait=False)
else:
    gdb.breakpoint("step")
print(gdb.pid, flush=True)
signal.pause()
"""


# Whose the guest is


def test_a_claim_on_the_stub_lasts_until_gdb_lets_go(unconnected: Gdb, bare: Bare, directory: Path) -> None:
    lock = directory / "attach.lock"
    unconnected.connect(bare.endpoint, owner=VmOwner.claim(lock, "vm"))
    with pytest.raises(StateError, match=f"a GDB is already attached to vm: pid {os.getpid()}"):
        VmOwner.claim(lock, "vm")
    unconnected.detach()
    unconnected.connect(bare.endpoint, owner=VmOwner.claim(lock, "vm"))
    unconnected.close()
    VmOwner.claim(lock, "vm").release()


def test_a_claim_is_given_back_by_a_gdb_that_does_not_connect(gdb: Gdb, bare: Bare, directory: Path) -> None:
    lock = directory / "attach.lock"
    with pytest.raises(StateError, match="it is stopped"):
        gdb.connect(bare.endpoint, owner=VmOwner.claim(lock, "vm"))
    VmOwner.claim(lock, "vm").release()


def test_closing_without_resuming_leaves_the_guest_stopped(gdb: Gdb, bare: Bare) -> None:
    gdb.breakpoint("step")
    gdb.cont(timeout=QUICK)
    gdb.close(resume=False)
    assert bare.status() == "debug"


def test_the_methods_of_the_parts_are_documented_as_those_of_gdb() -> None:
    public = {name for name in vars(Gdb) if not name.startswith("_")}
    assert {"step", "breakpoint", "evaluate", "load_modules", "held"} <= public
    assert [name for name in public if not (getattr(Gdb, name).__doc__ or "").strip()] == []
    assert list(inspect.signature(Gdb.backtrace).parameters)[1:] == ["cpu", "limit", "timeout"]


# Failures to start


def test_no_gdb_names_its_package(program: Path) -> None:
    with pytest.raises(HostError, match="no-such-gdb is not on PATH") as raised:
        Gdb.start(program, program="no-such-gdb")
    assert "apt install gdb" in raised.value.hint


def test_a_gdb_that_is_too_old(program: Path, tmp_path: Path) -> None:
    old = tmp_path / "gdb"
    old.write_text("#!/bin/sh\necho 'Interpreter `mi4'\\'' unrecognized' >&2; exit 1\n")
    old.chmod(0o755)
    with pytest.raises(HostError, match="this GDB cannot be used") as raised:
        Gdb.start(program, program=str(old))
    assert "Interpreter `mi4' unrecognized" in raised.value.detail
    assert "GDB 13.1 or newer" in raised.value.hint


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file or directory"), (b"text\n", "not in executable format")]
)
def test_a_vmlinux_that_is_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    vmlinux = tmp_path / "vmlinux"
    if content is not None:
        vmlinux.write_bytes(content)
    with pytest.raises(UsageError, match=words) as raised:
        Gdb.start(vmlinux)
    assert str(vmlinux) in raised.value.message


def test_a_vmlinux_of_any_name(program: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a b'c\"d\\e ä"
    odd.symlink_to(program)
    with Gdb.start(odd) as gdb:
        assert gdb.evaluate("first.pid") == 1


def test_kernel_scripts_are_sourced_and_broken_ones_noted(program: Path, tmp_path: Path) -> None:
    parts = tmp_path / "scripts" / "gdb" / "linux"
    parts.mkdir(parents=True)
    (tmp_path / "vmlinux-gdb.py").write_text("import linux.good\nimport linux.bad\n")
    (parts / "__init__.py").touch()
    (parts / "good.py").write_text("import gdb; gdb.set_convenience_variable('sourced', 1)")
    (parts / "bad.py").write_text("import nosuch")
    with Gdb.start(program, tmp_path) as gdb:
        assert gdb.evaluate("$sourced") == 1
        assert gdb.notes == ["kernel GDB scripts without linux.bad: No module named 'nosuch'"]


def test_nobody_at_the_endpoint(unconnected: Gdb, directory: Path) -> None:
    with pytest.raises(GdbError, match="No such file or directory"):
        unconnected.connect(directory / "nobody")
    with pytest.raises(GdbError, match="refused"):
        unconnected.connect("127.0.0.1:1")
    assert unconnected.state is State.UNCONNECTED


def test_an_endpoint_that_never_answers(program: Path, directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.fspath(directory / "silent"))
        silent.listen()
        with Gdb.start(program) as gdb:
            with pytest.raises(DeadlineError) as raised:
                gdb.connect(directory / "silent", timeout=0.2)
            assert "another one may be attached" in raised.value.hint
            pid = gdb.pid
            gdb.close(timeout=0.2)
        assert ended(pid)
