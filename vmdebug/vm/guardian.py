"""The guardian: a small process that ends a VM when the VM's owner has ended, by SIGKILL as well.

It reads orders from a pipe. Each line says what to remove or which group to kill; it does that at the pipe's
end, unless it reads `release` before. The kernel closes the owner's end of the pipe however the owner ends.

Two more properties depend on which process has which end of a pipe open:

- A started program writes `group PID` itself, before it becomes QEMU, and has the orders' writing end open
  until then. If the owner is killed in between, the guardian still knows which group to kill.
- Every started program inherits the writing end of a second pipe, the lifeline. Its end tells the guardian
  that the last of them has ended, so that it never signals a pid that the kernel has reused.

Every launch has a guardian; a detached VM's guardian is released once the VM runs. An owner that forks
without exec passes its end of the pipe to the child: then the VM runs until both have ended.
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
"""Longer than the guardian takes to end a VM and remove its directory."""

_RELEASE_SECONDS = 5.0

# The lifeline is descriptor 1, of all descriptors the one that a shell can name and does not need here.
_WATCH = """\
cd /
group=
while IFS= read -r line; do
  case $line in
  release) exit ;;
  'group '*) group=${line#group } ;;
  'remove '*) set -- "$@" "${line#remove }" ;;
  esac
done
ended() { timeout "$1" cat <&1 >/dev/null 2>&1; }
if [ "$group" ] && ! ended 0.05; then
  kill -s TERM -- "-$group"
  ended 3 || { kill -s KILL -- "-$group"; ended 5; }
fi
[ $# = 0 ] || rm -rf -- "$@"
"""

_ANNOUNCE = 'echo "group $$" && exec "$@" >&2'


class Guardian:
    """A guardian; it runs from `start` to `release` or `end`."""

    def __init__(self, child: Child, ref: ProcessRef, orders: int, lifeline: int) -> None:
        self.ref = ref
        self._child = child
        self._orders = orders
        self._lifeline = lifeline

    @classmethod
    def start(cls) -> Guardian:
        """Start a guardian, through which the VM is started.

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
        # Not reaped before release or end, so its pid is still its own.
        ref = ProcessRef.of(child.pid)
        assert ref is not None  # noqa: S101 - a child that was not waited for has an entry in /proc
        return cls(child, ref, orders, lifeline)

    def remove(self, path: Path) -> None:
        """Order it to remove a directory when the owner has ended."""
        self._order(f"remove {path}")

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
    ) -> Child:
        """Start the VM's program in a session of its own; it ends with the owner.

        Args:
            argv: Program and arguments.
            env: Its whole environment.
            log: Gets its stdout and stderr.
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
        """End the guardian without its work: the VM stays, or has ended and is cleared by others."""
        try:
            self._order("release")
        except BrokenPipeError:
            pass  # it was killed
        finally:
            self._leave()

    def end(self, deadline: Deadline) -> None:
        """Make it end the VM and remove the directories, and wait for that.

        Raises:
            DeadlineError: it has not finished; it continues.
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
