"""The transport, with a fake GDB that sends what a test says."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

import pytest

from vmdebug.deadline import Deadline
from vmdebug.debugger import mi, startup
from vmdebug.debugger.gdb_process import GdbProcess
from vmdebug.debugger.transport import Transport
from vmdebug.errors import DeadlineError, GdbError


def soon() -> Deadline:
    return Deadline.after(20)


def at_once() -> Deadline:
    return Deadline.after(0.01)


class Listener:
    """Records its calls."""

    def __init__(self) -> None:
        self.records: list[mi.Record] = []
        self.failures: list[str] = []
        self.over = False

    def notice(self, record: mi.Record) -> None:
        self.records.append(record)

    def failed(self, words: str) -> None:
        self.failures.append(words)

    def ended(self) -> None:
        self.over = True


class FakeGdb:
    """The other ends of the transport's pipes; answers each command as the test says."""

    def __init__(self) -> None:
        heard, stdin = os.pipe()
        stdout, said = os.pipe()
        self._heard = os.fdopen(heard, "rb")
        self._said = os.fdopen(said, "wb", buffering=0)
        stderr = os.fdopen(os.memfd_create("stderr"), "w+b")
        stderr.write(b"gdb: its last words\n")
        stderr.flush()
        self.listener = Listener()
        self.commands: list[str] = []
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._life = threading.Thread(target=self._live)
        end = GdbProcess(1, self.die, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"), stderr)
        self.transport = Transport.start(end, self.listener)

    def answers(self, *lines: str) -> None:
        """Send this after the next command."""
        self._answers.put("".join(f"{line}\n" for line in lines).encode())

    def says(self, *lines: str) -> None:
        """Send this now."""
        self._said.write("".join(f"{line}\n" for line in lines).encode())

    def says_raw(self, data: bytes) -> None:
        self._said.write(data)

    def listens(self) -> None:
        self._life.start()

    def die(self) -> None:
        self._answers.put(None)
        self._said.close()

    def close(self) -> None:
        self.die()
        self.transport.close(soon())
        if self._life.ident is not None:
            self._life.join(10)
        self._heard.close()

    def _live(self) -> None:
        for line in self._heard:
            self.commands.append(line.decode().rstrip("\n"))
            answer = self._answers.get()
            if answer is None:
                return
            self._said.write(answer)


@pytest.fixture
def deaf_gdb() -> Iterator[FakeGdb]:
    fake = FakeGdb()
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture
def gdb(deaf_gdb: FakeGdb) -> FakeGdb:
    deaf_gdb.listens()
    return deaf_gdb


def test_the_command_line() -> None:
    assert startup.mi_argv("/usr/bin/gdb") == [
        "/usr/bin/gdb",
        "-nx",
        "-q",
        "--interpreter=mi4",
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set pagination off",
        "-iex",
        "set confirm off",
        "-iex",
        "set style enabled off",
        "-iex",
        "set index-cache enabled on",
        "-iex",
        "maintenance set internal-error corefile no",
    ]


def test_a_command_gets_its_own_answer(gdb: FakeGdb) -> None:
    gdb.answers('1^done,value="2"', "(gdb) ")
    answer = gdb.transport.execute("-data-evaluate-expression 1+1", soon())
    assert gdb.commands[0] == "1-data-evaluate-expression 1+1"
    assert (answer.kind, answer.payload, answer.console) == ("done", {"value": "2"}, "")


def test_what_a_command_prints_comes_with_its_answer(gdb: FakeGdb) -> None:
    gdb.answers('~"rip  "', '~"0x10\\n"', '&"a warning\\n"', "1^done", "(gdb) ")
    assert gdb.transport.execute("-interpreter-exec console x", soon()).console == "rip  0x10\n"


@pytest.mark.parametrize("x", ["x", r"\033[33;49;22;23;24;27mx\033[m"], ids=["plain", "coloured by GDB 18"])
def test_a_refusal_has_the_command_and_gdbs_words(gdb: FakeGdb, x: str) -> None:
    gdb.answers(f'1^error,msg="No symbol \\"{x}\\" in current context."')
    with pytest.raises(GdbError) as raised:
        gdb.transport.execute("-data-evaluate-expression x", soon())
    assert raised.value.command == "-data-evaluate-expression x"
    assert raised.value.words == 'No symbol "x" in current context.'
    assert raised.value.message.startswith("GDB refused `-data-evaluate-expression x`: No symbol")


def test_an_answer_in_pieces_is_put_together(gdb: FakeGdb) -> None:
    call = gdb.transport._send("-x", soon())
    pieces = [b"(gdb) \n1^do", b'ne,value="', b"x" * 5000, b'"\n']
    for piece in pieces:
        gdb.transport._take(piece)
    assert call.result is not None
    assert call.result.payload() == {"value": "x" * 5000}


def test_after_a_passed_deadline_the_late_answer_is_dropped(gdb: FakeGdb) -> None:
    with pytest.raises(DeadlineError, match="for GDB to answer `-slow`"):
        gdb.transport.execute("-slow", at_once())
    gdb.answers('~"slow words"', '1^done,value="late"')
    gdb.answers('~"quick words"', '2^done,value="right"')
    answer = gdb.transport.execute("-quick", soon())
    assert (answer.payload, answer.console) == ({"value": "right"}, "quick words")


def test_a_late_refusal_is_dropped_as_well(gdb: FakeGdb) -> None:
    with pytest.raises(DeadlineError):
        gdb.transport.execute("-slow", at_once())
    gdb.answers('1^error,msg="too late"')
    gdb.answers("2^done")
    assert gdb.transport.execute("-quick", soon()).kind == "done"
    assert gdb.listener.failures == []


def test_events_reach_the_listener_in_order(gdb: FakeGdb) -> None:
    gdb.answers("1^running", '*running,thread-id="all"', "(gdb) ", '=breakpoint-modified,bkpt={number="1"}')
    gdb.transport.execute("-exec-continue", soon())
    gdb.says('*stopped,reason="signal-received"')
    gdb.transport.wait(lambda: len(gdb.listener.records) == 4, soon(), "four events")
    names = [(record.sigil, record.name) for record in gdb.listener.records]
    assert names == [("^", "running"), ("*", "running"), ("=", "breakpoint-modified"), ("*", "stopped")]


def test_the_announcement_of_a_stop_is_no_command_output(gdb: FakeGdb) -> None:
    gdb.answers('~"\\nThread 1 hit Breakpoint 1\\n"', '*stopped,reason="breakpoint-hit"', '~"2\\n"', "1^done")
    assert gdb.transport.execute("-interpreter-exec console x", soon()).console == "2\n"


def test_running_that_is_taken_back_is_told_with_gdbs_words(gdb: FakeGdb) -> None:
    gdb.answers("1^running", '*running,thread-id="all"', "(gdb) ")
    gdb.transport.execute("-exec-continue", soon())
    gdb.says('&"Cannot insert hardware breakpoint 5.\\n"', '1^error,msg="Command aborted."')
    gdb.transport.wait(lambda: bool(gdb.listener.failures), soon(), "the failure")
    assert gdb.listener.failures == ["Cannot insert hardware breakpoint 5.\n"]


def test_the_end_of_gdb_fails_who_waits_with_its_last_words(gdb: FakeGdb) -> None:
    gdb.says('&"internal-error: oops\\n"')
    gdb.transport.refresh()
    gdb.die()
    with pytest.raises(GdbError, match="GDB ended before it answered `-x`") as raised:
        gdb.transport.execute("-x", soon())
    assert raised.value.detail == "internal-error: oops\n\ngdb: its last words"
    assert gdb.listener.over
    with pytest.raises(GdbError, match="GDB has ended"):
        gdb.transport.execute("-y", soon())


def test_what_gdb_says_during_the_command_that_ends_it_is_in_the_error(gdb: FakeGdb) -> None:
    call = gdb.transport._send("-x", soon())
    gdb.says('&"internal-error: oops\\n"')
    gdb.die()
    gdb.transport.wait(lambda: call.result is not None, soon(), "the end")
    with pytest.raises(GdbError, match="GDB has ended") as raised:
        gdb.transport.execute("-y", soon())
    assert raised.value.detail == "internal-error: oops\n\ngdb: its last words"


def test_the_end_of_gdb_ends_every_wait(gdb: FakeGdb) -> None:
    waits = [
        threading.Thread(target=gdb.transport.wait, args=(lambda: False, soon(), "nothing")) for _ in range(3)
    ]
    for wait in waits:
        wait.start()
    gdb.die()
    for wait in waits:
        wait.join(10)
    assert not any(wait.is_alive() for wait in waits)


def test_a_line_that_gdbs_end_cuts_is_dropped(gdb: FakeGdb) -> None:
    call = gdb.transport._send("-x", soon())
    gdb.says_raw(b"1^done,a=[")
    gdb.die()
    gdb.transport.wait(lambda: False, soon(), "the end")
    assert call.result is None


def test_a_whole_line_that_is_not_mi_fails_its_command_alone(gdb: FakeGdb) -> None:
    gdb.answers("1^done,a=[")
    gdb.answers("2^done")
    with pytest.raises(GdbError, match="not MI"):
        gdb.transport.execute("-x", soon())
    assert gdb.transport.execute("-y", soon()).kind == "done"


def test_nobody_needs_to_wait_for_gdb_to_be_read(gdb: FakeGdb) -> None:
    """More than a pipe holds: GDB and the guest would block."""
    line = '=breakpoint-modified,bkpt={number="1",times="7"}'
    writer = threading.Thread(target=lambda: gdb.says(*[line] * 10_000))
    writer.start()
    writer.join(30)
    assert not writer.is_alive()
    gdb.answers("1^done")
    gdb.transport.execute("-x", soon())
    assert len(gdb.listener.records) == 10_000


def test_a_command_passes_while_another_thread_waits(gdb: FakeGdb) -> None:
    stopped = threading.Event()

    def wait_for_the_stop() -> None:
        gdb.transport.wait(lambda: any(r.name == "stopped" for r in gdb.listener.records), soon(), "a stop")
        stopped.set()

    waiter = threading.Thread(target=wait_for_the_stop)
    waiter.start()
    gdb.answers("1^done")
    assert gdb.transport.execute("-exec-interrupt", soon()).kind == "done"
    gdb.says('*stopped,reason="signal-received"')
    assert stopped.wait(10)
    waiter.join()


def test_threads_get_each_its_own_answer(gdb: FakeGdb) -> None:
    got: dict[str, str] = {}

    def ask(what: str) -> None:
        got[what] = gdb.transport.execute(what, soon()).payload["value"]

    threads = [threading.Thread(target=ask, args=(f"-question {n}",)) for n in range(40)]
    for token in range(1, 41):
        gdb.answers(f'{token}^done,value="answer {token}"', "(gdb) ")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    expected = {f"-{what}": f"answer {token}" for token, _, what in (c.partition("-") for c in gdb.commands)}
    assert got == expected
    assert len(got) == 40


def test_a_gdb_that_does_not_read_costs_a_deadline_and_tears_no_command(deaf_gdb: FakeGdb) -> None:
    gdb = deaf_gdb
    big = "-x " + "y" * 200_000  # more than a pipe holds
    with pytest.raises(DeadlineError, match="GDB to read its commands"):
        gdb.transport.execute(big, at_once())
    gdb.listens()
    gdb.answers("1^done")
    gdb.answers("2^done")
    gdb.transport.execute("-after", soon())
    assert gdb.commands == [f"1{big}", "2-after"]


def test_closing_after_gdbs_exit_closes_once(gdb: FakeGdb) -> None:
    gdb.answers("1^exit")
    gdb.transport.execute("-gdb-exit", soon())
    gdb.die()
    gdb.transport.close(soon())
    gdb.transport.close(soon())
    assert gdb.listener.over
    assert not gdb.transport._idle.is_alive()


def test_closing_a_hung_gdb_kills_it_at_the_deadline(gdb: FakeGdb) -> None:
    gdb.transport.close(at_once())
    assert gdb.commands == ["1-gdb-exit"]
    assert gdb.listener.over
