"""The guardian: a small process that ends a VM when its owner is gone, however it went.

It reads orders from a pipe. A line says what to remove or whom to kill; the
pipe's end, without `release` before it, is the order to do so. The kernel closes
the owner's side of the pipe whatever happens to the owner, SIGKILL included.

Two more properties rest on who holds which end of a pipe:

- What is started says `group PID` itself, before it becomes QEMU, and holds the
  orders' writing end until then: an owner killed in between leaves a guardian
  that knows whom to kill.
- Everything started inherits the writing end of a second pipe, the lifeline. Its
  end tells the guardian that the last of them has gone, so that a pid is never
  signalled after the kernel gave it away.

Every launch is guarded; a detached VM is released from its guardian once it runs.
An owner that forks without exec hands its end to the child: then the VM lives
until both are gone.
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
"""More than the guardian takes to end a VM and to remove its directory."""

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
    """One guardian, alive from `start` to `release` or `end`."""

    def __init__(self, child: Child, ref: ProcessRef, orders: int, lifeline: int) -> None:
        self.ref = ref
        self._child = child
        self._orders = orders
        self._lifeline = lifeline

    @classmethod
    def start(cls) -> Guardian:
        """Start one; the VM is started through it.

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
        """Have a directory removed when the owner is gone."""
        self._order(f"remove {path}")

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, pass_fds: Sequence[int] = ()
    ) -> Child:
        """Start the VM's program in a session of its own, as one that ends with the owner.

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
        """Dismiss it: the VM stays, or has ended and was cleared by others."""
        try:
            self._order("release")
        except BrokenPipeError:
            pass  # somebody killed it: gone is gone
        finally:
            self._leave()

    def end(self, deadline: Deadline) -> None:
        """Have it end the VM and remove the directories, and wait until that is done.

        Raises:
            DeadlineError: it is not done yet; the guardian goes on.
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
