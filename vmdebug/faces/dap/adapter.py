"""The debug adapter: handles the requests of one client, in their order.

`launch` and `attach` connect GDB before the client is asked for its breakpoints (the event `initialized`), so
that these are set in a kernel whose address is known, and verified at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmdebug import spelling
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.faces.dap import arguments, capabilities
from vmdebug.faces.dap.client import Client
from vmdebug.faces.dap.console import ConsoleOutput
from vmdebug.faces.dap.debugger import Debugger
from vmdebug.faces.dap.guest import DebuggedVm
from vmdebug.faces.dap.inspecting import Inspecting
from vmdebug.faces.dap.program import Program
from vmdebug.faces.dap.progress import Progress
from vmdebug.faces.dap.wire import Message

END_SECONDS = 60.0
"""How long the request in progress may take to end with its session."""

_Handler = Callable[[Message, dict[str, Any]], None]


class Adapter:
    """One session. `handle` takes each request; `close` ends the session.

    Args:
        client: The client.
        find_program: Finds GDB; raises if there is none.
    """

    def __init__(self, client: Client, find_program: Callable[[], Program]) -> None:
        self._client = client
        self._find_program = find_program
        self._program: Program | None = None
        self._guest: DebuggedVm | None = None
        self._debugger: Debugger | None = None
        self._console: ConsoleOutput | None = None
        self._progress: Progress | None = None
        self._asked: arguments.Asked | None = None
        self._work: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._numbers: dict[int, int] = {}
        self._inspecting = Inspecting(client, self._connected)
        self.over = False
        """Whether the session has ended, and the client has been told."""
        self._worker = threading.Thread(target=self._serve, name="requests", daemon=True)
        self._worker.start()

    def handle(self, request: Message) -> None:
        """Take a request. Those that must not wait for the ones before are handled at once."""
        command = request.get("command")
        if command == "pause":
            self._pause(request)
        elif command == "cancel":
            self._client.succeed(request)
        else:
            if command in ("disconnect", "terminate") and self._progress is not None:
                self._progress.cancel()
            self._work.put(request)

    def close(self) -> None:
        """End the session as `disconnect` without arguments does, if it has not ended."""
        if self._progress is not None:
            self._progress.cancel()
        self._work.put(None)
        self._worker.join(END_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait until the requests so far are handled, at most `seconds`."""
        self._worker.join(seconds)

    def _serve(self) -> None:
        with spelling.spelled(arguments.spell):
            while not self.over and (request := self._work.get()) is not None:
                self._answer(request)
            if not self.over:
                with contextlib.suppress(VmdebugError):
                    self._leave(terminate=None, suspend=False)

    def _answer(self, request: Message) -> None:
        command = str(request.get("command"))
        given = request.get("arguments")
        handler: _Handler | None = getattr(self, f"_on_{command}", None) or self._inspecting.handler(command)
        try:
            if request.get("type") != "request" or handler is None:
                raise UsageError(f"vmdebug dap does not know the request {command!r}")
            if given is not None and not isinstance(given, dict):
                raise UsageError(f"{command}: expected a table of arguments, found {given!r}")
            handler(request, given or {})
        except VmdebugError as error:
            self._client.fail(request, error)
        except OSError as error:
            self._client.refuse(request, f"{command}: {error.strerror or error}")
        except (KeyError, TypeError, ValueError) as error:
            self._client.refuse(request, f"{command}: an argument is missing or of a wrong type: {error}")

    def _connected(self) -> Debugger:
        if self._debugger is None:
            raise UsageError("there is no guest yet", hint="send launch or attach first")
        return self._debugger

    def _on_initialize(self, request: Message, given: dict[str, Any]) -> None:
        self._client.able = given
        self._program = self._find_program()
        self._client.succeed(request, capabilities.AT_FIRST)

    def _on_launch(self, request: Message, given: dict[str, Any]) -> None:
        self._begin("launch", request, given, "starting the guest", self._launched)

    def _on_attach(self, request: Message, given: dict[str, Any]) -> None:
        self._begin("attach", request, given, "attaching to the guest", self._found)

    def _begin(
        self,
        kind: arguments.Request,
        request: Message,
        given: Mapping[str, Any],
        title: str,
        obtain: Callable[[arguments.Asked, Progress], DebuggedVm],
    ) -> None:
        if self._debugger is not None:
            raise UsageError(f"{kind}: the session has a guest already", hint="one session has one guest")
        if self._program is None:
            raise UsageError(f"{kind} came before initialize", hint="send initialize first")
        asked = arguments.parse(kind, given)
        for note in asked.ignored:
            self._client.say(note, "important")
        if asked.session.cwd is not None:
            _change_directory(asked.session.cwd)
        shown = bool(self._client.able.get("supportsProgressReporting"))
        progress = self._progress = Progress(self._client.emit, shown=shown, title=title)
        try:
            self._open(asked, progress, obtain)
        except BaseException:
            self._abandon()
            raise
        finally:
            progress.end()
        self._client.succeed(request)
        self._client.emit("initialized")

    def _open(
        self,
        asked: arguments.Asked,
        progress: Progress,
        obtain: Callable[[arguments.Asked, Progress], DebuggedVm],
    ) -> None:
        self._asked = asked
        guest = self._guest = obtain(asked, progress)
        self._follow_console(whole=guest.launched)
        debugger = self._debugger = Debugger(self._client, guest)
        assert self._program is not None  # noqa: S101 - for the type checker: `_begin` has checked it
        debugger.start(self._program, asked.session)
        progress.check()
        changed = capabilities.changes(debugger.capabilities, replays=guest.replays)
        if changed:
            self._client.emit("capabilities", {"capabilities": changed})

    def _launched(self, asked: arguments.Asked, progress: Progress) -> DebuggedVm:
        guest = DebuggedVm.launch(asked, progress)
        for note in guest.machine.state.spec.notes:
            self._client.say(note)
        self._client.say(f"{guest.machine.name}: {guest.machine.state.accel}: {guest.machine.state.reason}")
        return guest

    def _found(self, asked: arguments.Asked, _progress: Progress) -> DebuggedVm:
        return DebuggedVm.find(asked.session)

    def _follow_console(self, *, whole: bool) -> None:
        assert self._asked is not None  # noqa: S101 - for the type checker
        assert self._guest is not None  # noqa: S101
        wanted = self._asked.session.console
        if wanted or (wanted is None and self._guest.launched):
            log = self._guest.machine.rundir.console_log
            self._console = ConsoleOutput(log, self._client.emit, whole=whole)

    def _abandon(self) -> None:
        """Leave the guest after a failed start; end it if it was started here."""
        with contextlib.suppress(VmdebugError):
            self._leave(terminate=None, suspend=False)
        self.over = False

    def _on_configurationDone(self, request: Message, _given: dict[str, Any]) -> None:  # noqa: N802 - as in the protocol
        self._connected()
        self._client.succeed(request)
        self._go()

    def _go(self) -> None:
        """Begin: let the guest run, or tell the client where it is stopped."""
        debugger, guest, asked = self._connected(), self._guest, self._asked
        assert guest is not None  # noqa: S101 - for the type checker: with a debugger there are both
        assert asked is not None  # noqa: S101
        session = asked.session
        stop = guest.halt or session.until is not None
        if stop if session.stop_on_entry is None else session.stop_on_entry:
            debugger.runs.tell("entry")
        else:
            debugger.resume()

    def _on_restart(self, request: Message, _given: dict[str, Any]) -> None:
        debugger, guest = self._connected(), self._guest
        assert guest is not None  # noqa: S101 - for the type checker
        progress = self._progress = Progress(
            self._client.emit,
            shown=bool(self._client.able.get("supportsProgressReporting")),
            title="restarting the guest",
        )
        try:
            renewal = guest.renewed(progress)  # if it fails, the session goes on as it was
            debugger.disconnect()
            self._close_console()
            guest.restart(renewal, progress)
            self._follow_console(whole=True)
            debugger.reconnect()
        finally:
            progress.end()
        self._client.succeed(request)
        self._go()

    def _pause(self, request: Message) -> None:
        debugger, guest = self._debugger, self._guest
        if debugger is None or guest is None:
            self._client.refuse(request, "there is no guest yet")
            return
        if not debugger.runs.running:
            self._client.succeed(request)
            return
        debugger.runs.pausing = True
        try:
            guest.pause()
        except VmdebugError as error:
            self._client.fail(request, error)
            return
        self._client.succeed(request)

    def _on_terminate(self, request: Message, _given: dict[str, Any]) -> None:
        if self._guest is None or not self._guest.launched:
            name = "" if self._guest is None else f" {self._guest.machine.name}"
            raise UsageError(
                f"terminate ends only a guest that the session started, and it did not start{name}",
                hint=f"disconnect leaves it as it was; `vmdebug stop{name}` ends it",
            )
        self._leave(terminate=True, suspend=False)
        self.over = False  # the client still sends disconnect
        self._client.succeed(request)
        self._client.emit("terminated", {})

    def _on_disconnect(self, request: Message, given: dict[str, Any]) -> None:
        terminate = given.get("terminateDebuggee")
        try:
            if terminate and self._guest is not None and not self._guest.launched:
                self._client.say(
                    f"{self._guest.machine.name} goes on: the session did not start it; see `vmdebug stop`"
                )
            self._leave(terminate=terminate, suspend=bool(given.get("suspendDebuggee")))
        finally:
            self.over = True
        self._client.succeed(request)
        self._client.emit("terminated", {})

    def _leave(self, *, terminate: bool | None, suspend: bool) -> None:
        """End the session: end a guest that was started here, and leave any other as it was found.

        Args:
            terminate: Whether a guest that was started here ends; None: it does.
            suspend: Whether a guest that goes on stays stopped.
        """
        guest, debugger = self._guest, self._debugger
        self._guest = self._debugger = None
        try:
            if guest is not None and guest.launched and terminate is not False:
                self._end(guest, debugger)
            elif guest is not None:
                if debugger is not None:
                    debugger.leave(resume=guest.resumes(suspend=suspend))
                if guest.launched:
                    guest.keep()
        finally:
            self._close_console()
            self.over = True

    @staticmethod
    def _end(guest: DebuggedVm, debugger: Debugger | None) -> None:
        if debugger is not None:
            debugger.abandon()
        try:
            guest.end()
        finally:
            if debugger is not None:
                debugger.close()

    def _close_console(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()


def _change_directory(words: str) -> None:
    try:
        os.chdir(Path(words).expanduser())
    except OSError as error:
        raise UsageError(f'"cwd": {words}: {error.strerror}', hint="give a directory that exists") from error
