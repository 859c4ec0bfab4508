"""Lets scripts use a person's GDB while the person works in it.

A script connects to an abstract socket and gets a terminal on which GDB speaks MI: `new-ui`, see
"Interpreters" in GDB's manual. An abstract socket is not a file, so it vanishes when GDB ends, however it
ends; see unix(7). Only the same user may connect. The connection lasts as long as the script. When the script
ends, however it ends, its remaining breakpoints are deleted.

GDB keeps the script's end of that terminal open too, and closes it on its own thread once the script has
ended. If the script's process closed the last descriptor, GDB could read an end of file from the terminal,
which mi_execute_command() in gdb/mi/mi-main.c takes as a request to quit GDB.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gdb
import vmd_batch
import vmd_early

if TYPE_CHECKING:
    import socket

_CREDENTIALS = struct.Struct("iII")
"""`struct ucred` of unix(7): pid, uid, gid."""

_RETRY_MS = 100
"""Milliseconds until the next attempt to stop the guest."""

_EXIT_MS = 100
"""Milliseconds for a killed script's process to close its descriptors, which it does in no set order."""

_CHUNK_BYTES = 1 << 16


class Share(gdb.Command):
    """Let scripts use this GDB while you work in it: vmd-share.

    `vmdebug trace`, `vmdebug run SCRIPT --name NAME` and vmdebug.attach(NAME) then use this
    GDB, one at a time. You see each stop of the guest. When a script ends, its breakpoints
    are deleted. While a script runs the guest, `interrupt` stops it.

    Example: vmd-share
    """

    NAME = "vmd-share"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_SUPPORT)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """Start to listen, unless this GDB is shared already."""
        if SERVER.address:
            return
        lock = gdb.convenience_variable("vmd_lock")
        if lock is None:
            vmd_batch.fail("vmd-share works only in a GDB that `vmdebug attach` has started", vmd_batch.USAGE)
        if not gdb.parameter("mi-async"):
            try:
                gdb.set_parameter("mi-async", True)
            except gdb.error as error:
                vmd_batch.fail(f"scripts need mi-async, to be used while the guest runs: {error}")
        import vmd_mi  # noqa: PLC0415 - needed only by scripts

        vmd_mi.define()
        vmd_mi.Command("-vmd-script-breakpoint", SERVER.own_breakpoint)
        vmd_mi.Command("-vmd-run-state", run_state)
        SERVER.open()
        # Scripts read the address there.
        text = f"{os.getpid()}\n{SERVER.address}\n".encode()
        os.ftruncate(int(lock), os.pwrite(int(lock), text, 0))


class Terminal:
    """The script's end of the terminal on which GDB speaks MI with it.

    GDB's own thread closes it, so GDB never waits for input on a terminal that is just being closed. Until
    then the server's thread reads what GDB still writes: a full terminal would block GDB.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._descriptor = -1

    def keep(self, descriptor: int) -> None:
        """Own this descriptor from now on."""
        with self._lock:
            self._descriptor = descriptor

    def discard(self) -> None:
        """Read what GDB has written after the script has ended."""
        # Without poll(2): a descriptor that another thread waits on is closed only when that wait ends.
        with self._lock, suppress(OSError):  # nothing to read: EAGAIN
            if self._descriptor >= 0:
                os.set_blocking(self._descriptor, False)
                while os.read(self._descriptor, _CHUNK_BYTES):
                    pass

    def close(self) -> None:
        """Close it, which ends the interpreter."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


class ScriptServer:
    """Accepts scripts; `SERVER` is the only instance.

    A thread waits for connections. All calls to GDB are made on GDB's own thread.
    """

    def __init__(self) -> None:
        self.address = ""
        self._listener: socket.socket | None = None
        self._own: list[gdb.Breakpoint] = []
        self._script = ""
        self._leaving = False
        self._stopping = False
        self._paged = False
        self._pid = 0
        self._terminal = Terminal()

    def open(self) -> None:
        """Listen."""
        import secrets  # noqa: PLC0415 - slow to import, and needed only here
        import socket  # noqa: PLC0415
        import threading  # noqa: PLC0415 - once imported, GDB waits for it at exit

        name = f"vmdebug-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{name}")
        self._listener.listen()
        self.address = f"@{name}"
        # GDB's own thread must receive the user's Ctrl-C, so the new thread blocks all signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def own_breakpoint(self, number: str) -> dict[str, object]:
        """`-vmd-script-breakpoint NUMBER`: delete this breakpoint when the script ends."""
        self._own += [each for each in gdb.breakpoints() if each.number == int(number)]
        return {}

    def _serve(self, listener: socket.socket) -> None:
        """Accept scripts, one at a time; this is the thread's main function."""
        import socket  # noqa: PLC0415 - as above

        client: socket.socket | None = None
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            # Accept the next script only when the last one's breakpoints are deleted.
            poll.modify(listener, 0 if self._leaving else select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(_RETRY_MS if self._leaving else None)}
            if self._leaving:
                self._terminal.discard()
            if not ready and self._stopping:
                # QEMU ignores a request to stop that arrives before the guest runs.
                gdb.post_event(self._leave)
            if client is not None and client.fileno() in ready:
                # A script sends nothing on this socket: it has ended.
                poll.unregister(client)
                client.close()
                client = None
                self._leaving = True
                _wait_for_exit(self._pid)
                gdb.post_event(self._end)
            if listener.fileno() in ready:
                caller, _ = listener.accept()
                pid, uid, _ = _CREDENTIALS.unpack(
                    caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
                if uid != os.getuid() or client is not None:
                    with caller, suppress(OSError):
                        caller.sendall(f"{self._script}\n".encode())
                    continue
                client, self._pid = caller, pid
                self._script = f"pid {pid} ({_name(pid)})"
                poll.register(client, select.POLLIN)
                gdb.post_event(partial(self._join, client))

    def _join(self, caller: socket.socket) -> None:
        """Give a script a terminal with an MI interpreter."""
        import socket  # noqa: PLC0415 - as above
        import termios  # noqa: PLC0415
        import tty  # noqa: PLC0415

        try:
            ours, theirs = os.openpty()
        except OSError as error:
            _tell(f"{self._script} cannot share this GDB: {error}")
            caller.shutdown(socket.SHUT_RDWR)
            return
        try:
            tty.setraw(theirs, termios.TCSANOW)
            gdb.execute(f"new-ui mi4 {os.ttyname(theirs)}", to_string=True)
            # If the script has ended already, GDB ends the interpreter when the terminal closes.
            with suppress(OSError):
                socket.send_fds(caller, [b"+"], [ours])
            # GDB's "--Type <RET> for more--" would block the script.
            self._paged = self._paged or bool(gdb.parameter("pagination"))
            gdb.set_parameter("pagination", False)
            _tell(f"{self._script} shares this GDB")
        finally:
            os.close(theirs)
            self._terminal.keep(ours)

    def _end(self) -> None:
        """End the script's interpreter, then leave."""
        self._terminal.close()
        # GDB serves its descriptors in turn, so it deletes the interpreter before it executes the next event.
        # Until then everything that is printed goes to that interpreter.
        gdb.post_event(self._leave)

    def _leave(self) -> None:
        """Delete the breakpoints that a script has left; stop the guest for that if it runs."""
        if not self._leaving:
            return  # the guest has stopped meanwhile
        if self._has_leftovers() and _runs():
            if not self._stopping:
                gdb.events.stop.connect(self._stopped)
                self._stopping = True
            gdb.execute("interrupt")
            return
        self._note_stop()
        self._clear(resume=False)

    def _has_leftovers(self) -> bool:
        import vmd_trace  # noqa: PLC0415 - imported with vmd_mi

        self._own = [each for each in self._own if each.is_valid()]
        return bool(self._own or vmd_trace.open_traces() or vmd_early.WAITING.pending)

    def _stopped(self, event: gdb.StopEvent) -> None:
        self._note_stop()
        interrupted = isinstance(event, gdb.SignalEvent) and event.stop_signal == "SIGINT"
        hit = event.breakpoints if isinstance(event, gdb.BreakpointEvent) else ()
        ours = bool(hit) and all(each in self._own for each in hit)
        gdb.post_event(partial(self._clear, resume=interrupted or ours))

    def _note_stop(self) -> None:
        if self._stopping:
            gdb.events.stop.disconnect(self._stopped)
        self._stopping = self._leaving = False

    def _clear(self, *, resume: bool) -> None:
        try:
            self._delete_leftovers()
            if resume:
                gdb.execute("continue &")
        except gdb.error as error:
            _tell(f"{self._script} has ended; some of its breakpoints may remain: {error}")
        else:
            words = "; the guest runs on" if resume else ""
            _tell(f"{self._script} has ended{words}", at_prompt=resume)
        finally:
            if self._paged:
                gdb.set_parameter("pagination", True)
            self._paged = False

    def _delete_leftovers(self) -> None:
        import vmd_trace  # noqa: PLC0415

        for number in vmd_trace.open_traces():
            vmd_trace.end(number)
        for each in self._own:
            if each.is_valid():
                each.delete()
        self._own.clear()
        vmd_early.WAITING.clear()


SERVER = ScriptServer()


def _wait_for_exit(pid: int) -> None:
    """Wait until a process that has been killed has closed its descriptors; a script may also live on."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return  # it has ended
    try:
        exited = select.poll()
        exited.register(descriptor, select.POLLIN)
        exited.poll(_EXIT_MS)
    finally:
        os.close(descriptor)


def _name(pid: int) -> str:
    """Return the first words of a process's command line: "vmdebug trace"."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    # The first word of a Python script's command line is the interpreter.
    words = [Path(word).name for word in words if word]
    script = words[0].startswith("python") and len(words) > 1 and not words[1].startswith("-")
    return " ".join(words[1:3] if script else words[:2])


def _runs() -> bool:
    """Whether the guest runs. Do not list GDB's threads for this: GDB would have to ask QEMU."""
    return run_state()["state"] == "running"


def run_state() -> dict[str, object]:
    """`-vmd-run-state`: "running", "stopped" or "unconnected"; GDB refuses `-thread-info` while it runs."""
    thread = gdb.selected_thread()
    if thread is None or not thread.is_valid():
        return {"state": "unconnected"}
    return {"state": "running" if thread.is_running() else "stopped"}


def _tell(text: str, *, at_prompt: bool = False) -> None:
    """Print a message to the person, and the prompt again if there was one."""
    prompt = gdb.parameter("prompt") if at_prompt or not _runs() else ""
    # GDB would wait at "--Type <RET> for more--" once messages that nobody asked for have filled a page.
    paged = bool(gdb.parameter("pagination"))
    gdb.set_parameter("pagination", False)
    try:
        gdb.write(f"\n[{text}]\n{prompt}")
        gdb.flush()
    finally:
        gdb.set_parameter("pagination", paged)
