"""Starts a node of a NixOS test for debugging, from the test's script: `vmdebug.start_node`.

The test driver is nixpkgs' nixos/lib/test-driver. Its `Machine.start` calls `run` of the machine's
`start_command`, which starts the node's VM runner with further QEMU options, and returns a `subprocess.Popen`
whose pipes are the serial line. For one start, `_Starter` takes the place of the start command: it starts the
same VM with the same options as a VM of vmdebug. Everything else of the driver works as before: its shell in
the node, its monitor, and its networks, whose switches the runner finds in QEMU_VDE_SOCKET_NUMBER.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Unpack

import msgspec

from vmdebug import sources, vm
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.errors import StateError, UsageError, VmdebugError
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.guest_options import GuestOptions, StartOptions, changed
from vmdebug.locks import try_lock
from vmdebug.progress import Report, silent
from vmdebug.session import DebugSession
from vmdebug.session.debug_session import STOP_SECONDS
from vmdebug.vm import Vm

KEEP = "VMDEBUG_KEEP"
"""The environment variable that is the default of `start_node`'s `keep_failed`; empty or unset: False."""

_CONNECT_SECONDS = 10.0
"""How long QEMU may take to accept a connection to the serial line."""

_WAIT_SECONDS = 3600.0
"""How long `_Process.wait` waits for the end of QEMU at a time; it repeats that."""

# The driver's options that vmdebug replaces by its own, with the number of their arguments.
_REPLACED = {"-serial": 1, "-nographic": 0, "-no-reboot": 0}


class Node(Protocol):
    """What `start_node` uses of the test driver's `Machine`."""

    name: Any
    booted: Any
    start_command: Any
    state_dir: Any

    def start(self, *args: Any, **options: Any) -> Any:
        """Start the node's VM."""

    def execute(self, *args: Any, **options: Any) -> Any:
        """Run a command in the driver's shell in the node."""

    def log(self, *args: Any, **options: Any) -> Any:
        """Print a line."""


def start_node(
    machine: Node,
    *,
    keep_failed: bool | None = None,
    allow_reboot: bool = False,
    report: Report = silent,
    timeout: float = LAUNCH_SECONDS,
    build_timeout: float = BUILD_SECONDS,
    **options: Unpack[StartOptions],
) -> DebugSession:
    """Start a node of a NixOS test under the debugger, instead of `machine.start()`.

    The driver still owns the node: it ends with the test, and methods such as `machine.succeed` work while
    the guest runs. When the session ends, GDB detaches and the guest continues.

    Args:
        machine: The node's object in the test script.
        keep_failed: Whether to leave the node running for `vmdebug attach` if the test fails; None leaves it
            running if the environment variable VMDEBUG_KEEP is set.
        allow_reboot: As for `machine.start`.
        report: Called with each long step.
        timeout: Seconds to wait for QEMU's answer.
        build_timeout: Seconds for finding the kernel's symbols; nix may download them.
        **options: The options of `vmdebug.start`. Give `vmlinux` in a build, where nix cannot look for the
            kernel's symbols.

    Raises:
        StateError: the node is already running.
        UsageError: the node is not a VM, or an option is wrong.
        HostError: this machine lacks something.
        MismatchError: kernel and symbols are from different builds.
        LaunchError: QEMU did not start.
    """
    if machine.booted:
        raise StateError(
            f"the node {machine.name} is already running",
            hint="call start_node instead of start or start_all",
        )
    original = getattr(machine, "start_command", None)
    if not hasattr(original, "cmd"):
        raise UsageError(
            f"the node {machine.name} is not a VM: the test driver has no start command for it",
            hint="only a node that is a QEMU VM can be debugged",
        )
    kept = bool(os.environ.get(KEEP)) if keep_failed is None else keep_failed
    wanted = changed(GuestOptions(), options)
    starter = _Starter(machine, wanted, keep=kept, report=report, timeouts=(build_timeout, timeout))
    machine.start_command = starter
    try:
        machine.start(**({"allow_reboot": True} if allow_reboot else {}))
    finally:
        machine.start_command = original
    assert starter.session is not None  # noqa: S101 - the driver has called `run`
    return starter.session


class _Starter:
    """A start command of the test driver that starts a VM of vmdebug."""

    def __init__(
        self,
        node: Node,
        options: GuestOptions,
        *,
        keep: bool,
        report: Report,
        timeouts: tuple[float, float],
    ) -> None:
        self._node = node
        self._options = options
        self._original = node.start_command
        self._keep = keep
        self._report = report
        self._build_timeout, self._timeout = timeouts
        self.session: DebugSession | None = None

    def run(self, state_dir: Path, shared_dir: Path, *sockets: Any) -> _Process:
        """Start the VM as the driver's own start command would.

        Args:
            state_dir: The node's directory, with its disk.
            shared_dir: The directory that the node mounts at /tmp/shared.
            sockets: The arguments of the original's `cmd`: the paths of the driver's sockets, and whether
                the guest may reboot.
        """
        script, *given = shlex.split(self._original.cmd(*sockets))
        # The runner inherits it, as it inherits QEMU_VDE_SOCKET_NUMBER from the driver's vlan.py.
        os.environ["SHARED_DIR"] = str(shared_dir)
        spec = self._spec(script, driver_options(given), Path(state_dir))
        machine = vm.launch(spec, bound=True, report=self._report, timeout=self._timeout, exact_name=False)
        try:
            process = _Process(self._node, machine, keep=self._keep, force=self._options.force)
            if not self._options.halt:
                machine.resume()
        except BaseException:
            machine.stop(force=True)
            raise
        self.session = process.session
        return process

    def _spec(self, script: str, given: tuple[str, ...], state_dir: Path) -> LaunchSpec:
        own = self._options
        wanted = msgspec.structs.replace(
            own,
            source=script,
            name=own.name or vm_name(self._node.name),
            # `-S`: the guest prints nothing before the driver reads its serial line; `run` resumes it.
            qemu_args=(*given, *own.qemu_args, "-S"),
        )
        spec = sources.resolve(wanted, report=self._report, deadline=Deadline.after(self._build_timeout))
        runner = spec.machine
        assert isinstance(runner, RunnerMachine)  # noqa: S101 - nixpkgs' driver starts run-NAME-vm
        if runner.disk is None:
            # A disk that outlives the VM, so that the node can be started again.
            runner = msgspec.structs.replace(runner, disk=state_dir / f"{runner.system_name}.qcow2")
        return msgspec.structs.replace(spec, machine=runner, asked=None)


def vm_name(node: str) -> str:
    """Return the name of a node's VM: a node's name may be longer than a VM's."""
    return node[:40]


def driver_options(given: Sequence[str]) -> tuple[str, ...]:
    """Return the driver's QEMU options without those that vmdebug replaces by its own.

    Args:
        given: The options, as the driver appends them to the runner script.
    """
    kept: list[str] = []
    rest = iter(given)
    for word in rest:
        if word in _REPLACED:
            for _ in range(_REPLACED[word]):
                next(rest, None)
        else:
            kept.append(word)
    if "-no-reboot" not in given:
        kept += ["-action", "reboot=reset"]
    return tuple(kept)


class _Process:
    """The part of `subprocess.Popen` that the driver uses: QEMU's process, with the serial line as its pipes.

    Args:
        node: The node.
        machine: Its VM, stopped before its first instruction, and without a reader of its console.
        keep: Whether to leave it running if the test fails.
        force: Whether to accept symbols of another build.
    """

    def __init__(self, node: Node, machine: Vm, *, keep: bool, force: bool) -> None:
        self.session = DebugSession(machine, owned=False, force=force)
        self.pid = machine.state.pid
        self.returncode: int | None = None
        self._machine = machine
        self._keep = keep
        self._node = node
        self._lock = threading.Lock()
        self._held = contextlib.ExitStack()
        self._line = self._held.enter_context(_serial_line(machine))
        self.stdout = _lines(self._line)
        self.stdin: IO[bytes] = self._line.makefile("wb")
        self._held.callback(_guarded(node, self.session))

    def poll(self) -> int | None:
        """Return 0 if QEMU has ended, else None."""
        if self.returncode is None and not self._machine.state.qemu.alive():
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until QEMU has ended.

        Raises:
            TimeoutError: it still runs.
        """
        while self.returncode is None and not self._machine.state.qemu.wait(timeout or _WAIT_SECONDS):
            if timeout is not None:
                raise TimeoutError(f"QEMU of {self._machine.name} still runs after {timeout:g} s")
        self._end()
        return 0

    def terminate(self) -> None:
        """End QEMU; leave it running if the test has failed and `keep` is set."""
        # `Driver.__exit__` calls this, so the test's failure, if any, is the exception that is being handled.
        if self._keep and sys.exception() is not None and self._machine.state.qemu.alive():
            self._leave()
        else:
            self._end()

    kill = terminate

    def _end(self) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            self.returncode = 0
            with self._held:
                # GDB may have lost its connection to QEMU.
                with contextlib.suppress(VmdebugError):
                    self.session.close()
                self._machine.stop(timeout=STOP_SECONDS)
                self._hang_up()

    def _leave(self) -> None:
        with self._lock, self._held:
            name = self._machine.name
            with contextlib.suppress(VmdebugError):
                self.session.close()
            self._machine.keep()
            self._hang_up()
            self.returncode = 0
        self._node.log(
            f"the test failed, and its node runs on: vmdebug attach {name}; to end it: vmdebug stop {name}"
        )

    def _hang_up(self) -> None:
        """End the driver's loop that reads the serial line."""
        with contextlib.suppress(OSError):  # QEMU has closed it
            self._line.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # as above, with text that was not sent
            self.stdin.close()


def _lines(line: socket.socket) -> Iterator[bytes]:
    """Yield the lines of the serial line until its end."""
    with line.makefile("rb") as stream:
        yield from stream


@contextlib.contextmanager
def _serial_line(machine: Vm) -> Iterator[socket.socket]:
    """Connect to the serial line of a VM, and keep other clients from it."""
    fd = os.open(machine.rundir.console_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try_lock(fd)  # it succeeds, because nobody else knows the VM yet
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_CONNECT_SECONDS)
            line.connect(str(machine.rundir.console))
            line.settimeout(None)
            yield line
    finally:
        os.close(fd)


def _guarded(node: Node, session: DebugSession) -> Callable[[], None]:
    """Make the driver's commands raise while the guest is stopped; otherwise they would wait for ever.

    Returns:
        A function that undoes it.
    """
    original = node.execute

    def execute(*args: Any, **options: Any) -> Any:
        session.check_running("machine.execute")
        return original(*args, **options)

    node.execute = execute  # type: ignore[method-assign]

    def undo() -> None:
        node.execute = original  # type: ignore[method-assign]

    return undo
