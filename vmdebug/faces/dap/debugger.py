"""GDB in a session: it connects to the guest, runs and holds it, and leaves it."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vmdebug.deadline import Deadline
from vmdebug.debugger import interactive
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.faces.dap.arguments import Session
from vmdebug.faces.dap.child import ASK_SECONDS, GdbAdapter
from vmdebug.faces.dap.client import Client
from vmdebug.faces.dap.guest import DebuggedVm
from vmdebug.faces.dap.program import Program
from vmdebug.faces.dap.runs import Runs
from vmdebug.faces.dap.sources import Sources, is_tree
from vmdebug.faces.dap.tasks import TaskScope
from vmdebug.faces.dap.wire import Message

ATTACH_SECONDS = 300.0
"""How long GDB may take to load a kernel's symbols and connect."""

LEAVE_SECONDS = 20.0
"""How long GDB may take to leave the guest."""

STEPPED = "vmdebugStepped"
"""The event of `gdbinit/vmd_dap.py` at the end of a step."""

KINDS = ("panic", "oops", "warn")
"""The kinds of kernel trouble at which the guest can stop; see `TROUBLE` of `gdbinit/vmd_dap.py`."""

_DROPPED = ("initialized", "process", "thread")
"""Events of GDB that this adapter sends itself, or that tell nothing of a guest."""

_NOISE = ("Reading symbols from ",)


class Debugger:
    """GDB, connected to a guest. Made by `start`.

    Args:
        client: The client.
        guest: The guest.
    """

    def __init__(self, client: Client, guest: DebuggedVm) -> None:
        self._client = client
        self._guest = guest
        self._gdb: GdbAdapter | None = None
        self._ending = self._quiet = False
        self._stepping = contextlib.ExitStack()
        self.runs = Runs(client.emit)
        self.tasks = TaskScope(self.query)
        self.sources = Sources(None, None)
        self.capabilities: Message = {}
        self.cpus: list[tuple[int, int, int, str]] = []
        """The CPUs and their tasks at the last stop; see `vmd_dap.cpus`."""

    @property
    def gdb(self) -> GdbAdapter:
        """GDB's own adapter.

        Raises:
            UsageError: it has not been started.
        """
        if self._gdb is None:
            raise UsageError("there is no guest yet", hint="send launch or attach first")
        return self._gdb

    def start(self, program: Program, session: Session) -> None:
        """Start GDB, connect it to the guest, and do what the client's arguments ask for.

        Raises:
            VmdebugError: GDB does not load the symbols or does not connect, the symbols are of another
                kernel, the guest does not come to `until`, or a command of the client failed.
        """
        lock = self._guest.claim()
        attachment = self._guest.attachment(session, program.argv, lock)
        self._gdb = GdbAdapter.start(
            interactive.dap_argv(attachment),
            env=program.env,
            fds=(lock,),
            log=self._client.log,
            on_event=self._on_event,
            on_end=self._on_end,
        )
        source = attachment.kernel.source
        shown = self._guest.shown_tree(session)
        named = session.source is not None or is_tree(shown)
        self.sources = Sources(_tree(source), shown if named else None)
        deadline = Deadline.after(ATTACH_SECONDS)
        # GDB gives a part of the variables only to a client that pages; see `variables`.
        able = {**self._client.able, "supportsVariablePaging": True}
        self.capabilities = self.gdb.ask("initialize", deadline, **able)
        with self.runs.hidden():
            self._prepare(attachment, session, deadline)

    def _prepare(self, attachment: interactive.Attachment, session: Session, deadline: Deadline) -> None:
        keep, ours = self._guest.stays_stopped, self._guest.launched
        self._call(f"define(keep={keep}, ours={ours})", deadline)
        for old, new in session.source_map.items():
            self.gdb.execute(f"set substitute-path {shlex.quote(old)} {shlex.quote(new)}", deadline)
        for command in interactive.commands(attachment):
            self.gdb.execute(command, deadline)
        self.cpus = self.query("cpus()")
        for command in session.init_commands:
            said = self.gdb.execute(command, deadline)
            if said:
                self._client.say(said.rstrip())

    @property
    def goes_back(self) -> bool:
        """Whether the guest is a replay, which can go back in time."""
        return self._guest.replays

    def catch(self, kinds: Sequence[str]) -> None:
        """Stop at these kinds of kernel trouble, in place of those before.

        Raises:
            UsageError: there is no such kind.
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UsageError(f"there is no filter {unknown[0]!r}", hint=f"the filters: {', '.join(KINDS)}")
        # Their events come before the answer that has their numbers.
        with self._catching():
            numbers = self.query(f"catch({', '.join(map(repr, kinds))})")
            self.runs.trouble = {int(number): kind for number, kind in numbers.items()}

    @contextlib.contextmanager
    def _catching(self) -> Iterator[None]:
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def query(self, call: str) -> Any:
        """Call a function of `gdbinit/vmd_dap.py`, and return its answer.

        Raises:
            GdbError: it failed.
        """
        lines = self._call(call).strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def _call(self, call: str, deadline: Deadline | None = None) -> str:
        return self.gdb.execute(f"python import vmd_dap; vmd_dap.{call}", deadline)

    def forward(self, request: Message, change: Callable[[Message], Message] | None = None) -> None:
        """Send the client's request to GDB, and GDB's answer to the client.

        Args:
            request: The request.
            change: Changes the answer's body.
        """

        def answered(answer: Message) -> None:
            body = self.sources.translated(answer.get("body"))
            if change is not None and answer.get("success") and body is not None:
                body = change(body)
            self._client.relay(request, answer, body)

        self.gdb.forward(request["command"], request.get("arguments"), answered)

    def resume(self, request: Message | None = None) -> None:
        """Let the guest run.

        Args:
            request: The client's `continue`; None: the adapter resumes it.

        Raises:
            GdbError: the adapter resumes it, and GDB refuses.
        """
        self.tasks.forget()
        self.runs.resumed()
        if request is not None:
            self.gdb.forward("continue", request.get("arguments"), partial(self._resumed, request))
            return
        try:
            self.gdb.ask("continue", threadId=1)
        except VmdebugError:
            self.runs.running = False
            raise

    def _resumed(self, request: Message, answer: Message) -> None:
        if not answer.get("success"):
            self.runs.running = False
        self._client.relay(request, answer, answer.get("body"))

    def step(self, command: str, thread: int) -> None:
        """Begin a step; its end is an event."""
        self.tasks.forget()
        self._stepping.enter_context(self.runs.hidden())
        self.runs.resumed()
        try:
            self._call(f"step({command!r}, {thread})")
        except VmdebugError:
            self._stepped({})
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Stop a guest that runs for the block: GDB inserts no breakpoint in a guest that runs."""
        if not self.runs.running:
            yield
            return
        with self.runs.hidden():
            self._stop(Deadline.after(ASK_SECONDS))
            try:
                yield
            finally:
                own = self.runs.interrupted
                if own and not self.runs.over:
                    self.resume()
        if not own:
            self.runs.tell()

    def reconnect(self) -> None:
        """Connect to the guest that was restarted, with its new symbols and the same breakpoints.

        Raises:
            GdbError: GDB did not connect.
        """
        directory = self._guest.machine.rundir.path
        with self.runs.hidden():
            self.gdb.execute(f"vmd-reconnect {directory}", Deadline.after(ATTACH_SECONDS))
        self.runs.over = False
        self.tasks.forget()

    def disconnect(self) -> None:
        """Disconnect from a guest that is about to end."""
        self._ending = True
        with self.runs.hidden(), contextlib.suppress(VmdebugError):
            self._stop(Deadline.after(LEAVE_SECONDS))
            self.gdb.execute("disconnect")
        self._ending = False

    def leave(self, *, resume: bool) -> None:
        """Leave the guest, and end GDB.

        Args:
            resume: Whether the guest runs afterwards.
        """
        self._ending = True
        if self._gdb is None:
            return
        deadline = Deadline.after(LEAVE_SECONDS)
        try:
            with self.runs.hidden(), contextlib.suppress(VmdebugError):
                if not self.runs.over:
                    self._stop(deadline)
                    # `disconnect` closes the connection without a packet that would resume the guest.
                    self.gdb.execute("detach" if resume else "disconnect", deadline)
        finally:
            self._gdb.close(deadline)
            self._guest.release()

    def abandon(self) -> None:
        """Have GDB ignore the end of its guest, which ends now."""
        self._ending = True

    def close(self) -> None:
        """End GDB, whose guest has ended."""
        if self._gdb is not None:
            self._gdb.close(Deadline.after(LEAVE_SECONDS))
        self._guest.release()

    def _stop(self, deadline: Deadline) -> None:
        """Stop the guest; a single attempt may be lost before GDB's resumption has reached QEMU."""
        for pause in deadline.pauses("the guest to stop", longest=1.0):
            if not self.runs.running:
                return
            self._guest.pause()
            with contextlib.suppress(VmdebugError):
                self.runs.wait_stopped(Deadline.after(max(pause, 0.1)))

    def _stepped(self, body: Message) -> None:
        """Handle the end of a step; `body` is that of the event."""
        self._stepping.close()
        self.runs.arrived(body)
        if body.get("error"):
            self._client.say(str(body["error"]), "stderr")
        if not self.runs.running and not self.runs.over:
            self.runs.tell()

    def _on_event(self, message: Message) -> None:
        """Handle an event of GDB, in the thread that reads them."""
        event, body = str(message.get("event")), message.get("body") or {}
        if event == "stopped":
            self.runs.stopped(body)
        elif event == "continued":
            self.runs.continued(body)
        elif event == STEPPED:
            self._stepped(body)
        elif event in ("exited", "terminated"):
            self._over(event, body)
        elif event == "output":
            text = str(body.get("output", ""))
            if not text.startswith(_NOISE) and text:
                self._client.emit("output", {**body, "category": "console"})
        elif event == "breakpoint":
            number = body.get("breakpoint", {}).get("id", 0)
            if number > 0 and number not in self.runs.trouble and not self._quiet:
                self._client.emit(event, self.sources.translated(body))
        elif event not in _DROPPED:
            self._client.emit(event, self.sources.translated(body))

    def _over(self, event: str, body: Message) -> None:
        if self._ending:
            return
        self.runs.ended()
        self._client.emit(event, body)

    def _on_end(self) -> None:
        if not self._ending:
            self.runs.ended()
            self._client.say("GDB has ended", "important")
            self._client.emit("terminated", {})


def _tree(source: Path | None) -> Path | None:
    """Return the tree of a kernel's sources.

    Args:
        source: The tree, or the directory in it or beside it that relative names in the DWARF start from.
    """
    if source is None:
        return None
    return next((each for each in (source, source / "source", source.parent) if is_tree(each)), source)
