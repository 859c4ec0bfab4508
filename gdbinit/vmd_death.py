"""Tells that the guest has died, and keeps a guest that has panicked as it is when GDB ends."""

from __future__ import annotations

import contextlib

import gdb
import vmd_batch
import vmd_dmesg
import vmd_guest
import vmd_history
import vmd_kgdb
import vmd_monitor
import vmd_positions

_LINES = 40
"""Lines of the kernel's log to show in batch mode: enough for a panic with its trace."""

_PANICKED = "guest-panicked"
_FAILED = "internal-error"

_DEAD = {
    _PANICKED: "the guest has panicked",
    _FAILED: "QEMU cannot continue the guest: its state is internal-error",
}
"""QEMU's run states of a guest that has died; see `RunState` of qemu-qmp-ref."""


def tell() -> None:
    """Print a message if the guest has died; its console may not show it.

    Also if $vmd_panicked is set, because a kernel without a driver for the panic device does not tell QEMU.
    """
    if vmd_history.replaying():
        # It would run to the end of the recording.
        gdb.events.gdb_exiting.connect(_keep)
        vmd_positions.prompt()
        vmd_batch.say(f"a replay at {vmd_positions.describe(vmd_history.position())}")
        return
    state = _state()
    if state not in _DEAD:
        return
    words = _DEAD[state]
    if state == _PANICKED:
        gdb.events.cont.connect(_forget)
        gdb.events.gdb_exiting.connect(_keep)
        if not vmd_batch.batch():
            words += f"; print the end of its log: vmd-dmesg {_LINES}"
        elif vmd_guest.has_vmlinux():
            words += f"; the end of its log:\n{_log()}"
    vmd_batch.say(words)


def _state() -> str:
    """Return QEMU's run state; "" if it is none of a dead guest."""
    if gdb.convenience_variable("vmd_panicked"):
        gdb.set_convenience_variable("vmd_panicked", None)  # it is not for a later vmd-reconnect
        return _PANICKED
    with contextlib.suppress(gdb.error):  # another gdbstub than QEMU's has no monitor
        said = " ".join(vmd_monitor.ask("info status"))
        return next((state for state in _DEAD if f"({state})" in said), "")
    return ""


def _log() -> str:
    try:
        return "\n".join(vmd_dmesg.lines(_LINES))
    except (gdb.error, gdb.GdbError) as error:
        return str(error)


def _forget(_event: object = None) -> None:
    """Let GDB's end resume the guest as usual, because the user has resumed it."""
    gdb.events.cont.disconnect(_forget)
    gdb.events.gdb_exiting.disconnect(_keep)


def _keep(_event: object = None) -> None:
    """Disconnect without resuming the guest, which would reboot."""
    if vmd_guest.connected():
        gdb.execute("disconnect", to_string=True)


def _tell_failed(event: gdb.StopEvent) -> None:
    """Explain the signal that QEMU's gdbstub reports when it cannot run the guest any more.

    See `gdb_vm_state_change` of QEMU's gdbstub: RUN_STATE_INTERNAL_ERROR is SIGABRT, and nothing else is.
    """
    if isinstance(event, gdb.SignalEvent) and event.stop_signal == "SIGABRT" and not vmd_kgdb.on():
        vmd_batch.say(f"{_DEAD[_FAILED]}\nKVM's reason is in the VM's qemu.log; or use --accel tcg")


gdb.events.stop.connect(_tell_failed)
