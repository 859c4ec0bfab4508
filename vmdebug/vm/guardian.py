"""The guardian: a small process that ends a VM when the VM's owner has ended, even by SIGKILL.

It reads orders from a pipe. Each line names a directory to remove or a process group to kill. The guardian
does this when the pipe is closed, unless it has read `release`. The kernel closes the owner's end of the pipe
however the owner ends.

Two more properties depend on the open ends of the pipes:

- A started program writes `group PID` itself before it executes QEMU, and keeps the writing end open until
  then. So if the owner is killed in between, the guardian knows the group.
- Every started program inherits the writing end of a second pipe, the lifeline. When it closes, the last of
  them has ended, so the guardian never signals a pid that the kernel has reused.

Every launch has a guardian. The guardian of a detached VM is released when the VM runs. If an owner forks
without exec, the child has the pipe open too, and the VM runs until both have ended.

The guardian also bounds the console's log, which QEMU only appends to: a child of it, which ends with the VM,
removes the oldest part with fallocate(1). The removed part becomes a hole, so the positions of readers and of
QEMU stay valid; see `vmdebug.channel.log.kept`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.process import Child, ProcessRef

END_SECONDS = 15.0
"""How long the guardian may take to end a VM and remove its directory."""

LOG_BYTES = 16 << 20
"""Bytes at the end of a console's log that are kept."""

LOG_SECONDS = 10.0
"""How often the size of a log is checked. A guest writes some MiB in that time."""

_RELEASE_SECONDS = 5.0

# The lifeline is descriptor 1, which the script does not need otherwise.
_WATCH = """\
cd /
ended() { timeout "$1" cat <&1 >/dev/null 2>&1; }
bound() {
  while ! ended "$2"; do
    size=$(stat -c %s -- "$3") && [ "$size" -gt "$1" ] || continue
    fallocate --punch-hole --offset 0 --length $(((size - $1) / 4096 * 4096)) -- "$3"
  done
}
group=
while IFS= read -r line; do
  case $line in
  release) exit ;;
  'group '*) group=${line#group } ;;
  'remove '*) set -- "$@" "${line#remove }" ;;
  'bound '*) IFS= read -r path; bound ${line#bound } "$path" </dev/null 2>/dev/null & ;;
  esac
done
if [ "$group" ] && ! ended 0.05; then
  kill -s TERM -- "-$group"
  ended 3 || { kill -s KILL -- "-$group"; ended 5; }
fi
[ $# = 0 ] || rm -rf -- "$@"
"""

_ANNOUNCE = 'echo "group $$" && exec "$@" >&2'


class Guardian:
    """A guardian, which runs from `start` until `release` or `end`."""

    def __init__(self, child: Child, ref: ProcessRef, orders: int, lifeline: int) -> None:
        self.ref = ref
        self._child = child
        self._orders = orders
        self._lifeline = lifeline

    @classmethod
    def start(cls) -> Guardian:
        """Start a guardian. Then start the VM with its `spawn`.

        Raises:
            HostError: there is no `sh`.
        """
        fds: list[int] = []
        try:
            for _ in range(2):
                fds += os.pipe()
            orders_read, orders, lifeline_read, lifeline = fds
            child = process.start(
                ["sh", "-c", _WATCH, "sh"], stdin=orders_read, stdout=lifeline_read, session=True
            )
        except BaseException:
            _close(*fds)
            raise
        _close(orders_read, lifeline_read)
        # It is not reaped before `release` or `end`, so its pid is not reused.
        ref = ProcessRef.of(child.pid)
        assert ref is not None  # noqa: S101 - a child that was not waited for has an entry in /proc
        return cls(child, ref, orders, lifeline)

    def remove(self, path: Path) -> None:
        """Tell it to remove a directory when the owner has ended."""
        self._order(f"remove {path}")

    def bound(self, log: Path, *, size: int = LOG_BYTES, seconds: float = LOG_SECONDS) -> None:
        """Tell it to keep only the end of a log, as long as a started program runs.

        Args:
            log: The file, which need not exist yet.
            size: Number of bytes to keep.
            seconds: Time between two checks; in between the log may grow further.
        """
        self._order(f"bound {size} {seconds:g}\n{log}")

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
    ) -> Child:
        """Start the VM's program in a session of its own; the guardian ends it with the owner.

        Args:
            argv: Program and arguments.
            env: Its complete environment.
            log: File for its stdout and stderr.
            pass_fds: Descriptors that it inherits.

        Raises:
            HostError: it cannot be started, or the log cannot be written.
        """
        with log.open("ab") as stream:
            return process.start(
                ["sh", "-c", _ANNOUNCE, "sh", *argv],
                env=env,
                stdout=self._orders,
                stderr=stream,
                session=True,
                pass_fds=[self._lifeline, *pass_fds],
            )

    def release(self) -> None:
        """End the guardian, and leave the VM and its directories."""
        try:
            self._order("release")
        except BrokenPipeError:
            pass  # it was killed
        finally:
            self._leave()

    def end(self, deadline: Deadline) -> None:
        """Make it end the VM and remove the directories, and wait until it has.

        Raises:
            DeadlineError: it has not finished, and continues.
        """
        self._close_pipes()
        if not self.ref.wait(deadline.left("the VM to end")):
            raise deadline.error("the VM to end")
        self._child.wait()

    def _leave(self) -> None:
        self._close_pipes()
        if not self.ref.wait(_RELEASE_SECONDS):
            self.ref.signal(signal.SIGKILL)
        self._child.wait()

    def _close_pipes(self) -> None:
        _close(self._orders, self._lifeline)
        self._orders = self._lifeline = -1

    def _order(self, line: str) -> None:
        os.write(self._orders, f"{line}\n".encode(errors="surrogateescape"))


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
