"""The run state, with recorded MI records of real sessions."""

from __future__ import annotations

import pytest

from vmdebug.debugger import mi
from vmdebug.debugger.runstate import RunState, State
from vmdebug.errors import GdbError, GuestDiedError, StateError


def told(*lines: str) -> RunState:
    state = RunState()
    tell(state, *lines)
    return state


def tell(state: RunState, *lines: str) -> None:
    for line in lines:
        record = mi.read(line.encode())
        assert record is not None
        state.notice(record)


ATTACHED = '*stopped,frame={addr="0x000000000000fff0",func="??",args=[]},thread-id="1",stopped-threads="all"'
RUNNING = ("6^running", '*running,thread-id="all"')
INTERRUPTED = (
    '*stopped,reason="signal-received",signal-name="SIGINT",signal-meaning="Interrupt",thread-id="1"'
)
HIT = '*stopped,reason="breakpoint-hit",disp="keep",bkptno="1",thread-id="2",stopped-threads="all"'
GONE = ('=thread-exited,id="1",group-id="i1"', '=thread-group-exited,id="i1"')
GOODBYE = ('=thread-group-exited,id="i1",exit-code="0"', '*stopped,reason="exited-normally"')


def test_attaching_stops() -> None:
    state = told('=thread-group-started,id="i1",pid="1"', ATTACHED)
    assert state.state is State.STOPPED
    assert state.unseen
    stop = state.take_stop()
    assert stop is not None
    assert stop["frame"]["addr"] == "0x000000000000fff0"
    assert not state.unseen
    assert state.take_stop() is None


def test_running_is_counted_once_a_run() -> None:
    state = told(ATTACHED, *RUNNING)
    assert (state.state, state.runs) == (State.RUNNING, 1)
    tell(state, HIT, *RUNNING, HIT)
    assert (state.state, state.runs) == (State.STOPPED, 2)


def test_a_new_run_forgets_a_stop_that_nobody_took() -> None:
    state = told(ATTACHED, *RUNNING)
    assert not state.unseen


def test_an_interrupt_is_told_from_other_stops() -> None:
    assert told(ATTACHED, *RUNNING, INTERRUPTED).interrupted
    assert not told(ATTACHED, *RUNNING, HIT).interrupted


def test_a_lost_connection() -> None:
    state = told(ATTACHED, *RUNNING, *GONE)
    assert state.state is State.GONE
    with pytest.raises(GuestDiedError, match="threads: the guest has exited, or QEMU has ended"):
        state.need("threads", State.STOPPED)


def test_a_goodbye() -> None:
    state = told(ATTACHED, *RUNNING, *GOODBYE)
    assert state.state is State.GONE
    assert not state.unseen


def test_detaching_is_no_loss() -> None:
    state = told(ATTACHED)
    with state.detaching():
        tell(state, *GONE)
    assert state.state is State.DETACHED


def test_the_end_of_a_process_that_never_was_a_guest_is_nothing() -> None:
    assert told(*GONE).state is State.UNCONNECTED


def test_a_resumption_taken_back() -> None:
    state = told(ATTACHED, *RUNNING)
    state.failed("Cannot insert hardware breakpoint 5.\n")
    assert state.state is State.STOPPED
    assert state.unseen
    assert not state.interrupted
    with pytest.raises(GdbError) as raised:
        state.take_stop()
    assert raised.value.words == "Cannot insert hardware breakpoint 5."
    assert not state.unseen


def test_a_resumption_taken_back_because_the_guest_is_gone() -> None:
    state = told(ATTACHED, *RUNNING, *GONE)
    state.failed("Remote connection closed")
    assert state.state is State.GONE
    assert not state.unseen


def test_a_stop_that_cannot_be_read_is_a_stop() -> None:
    state = told(ATTACHED, *RUNNING, '*stopped,reason="breakpoint-hit",frame={')
    assert state.state is State.STOPPED
    assert state.take_stop() == {}


@pytest.mark.parametrize(
    ("lines", "needed", "message", "hint"),
    [
        ((), State.STOPPED, "x needs a guest that is stopped; it is not connected", "connect()"),
        ((ATTACHED,), State.RUNNING, "x needs a guest that is running; it is stopped", "cont()"),
        (
            (ATTACHED, *RUNNING),
            State.STOPPED,
            "x needs a guest that is stopped; it is running",
            "interrupt()",
        ),
    ],
)
def test_a_call_in_a_wrong_state(lines: tuple[str, ...], needed: State, message: str, hint: str) -> None:
    with pytest.raises(StateError) as raised:
        told(*lines).need("x", needed)
    assert raised.value.message == message
    assert hint in raised.value.hint


def test_any_of_several_states_will_do() -> None:
    state = told(ATTACHED)
    state.need("x", State.RUNNING, State.STOPPED)
    assert state.state is State.STOPPED


def test_a_frame_of_an_earlier_run() -> None:
    state = told(ATTACHED)
    state.need_run(0, "x")
    tell(state, *RUNNING, HIT)
    with pytest.raises(StateError, match="x: the guest has run since that frame was taken"):
        state.need_run(0, "x")


def test_the_end_of_gdb() -> None:
    state = told(ATTACHED)
    state.ended()
    with pytest.raises(GdbError, match="x: GDB has ended"):
        state.need("x", State.STOPPED)
