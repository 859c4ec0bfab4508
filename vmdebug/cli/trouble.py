"""The kernel's trouble while `vmdebug run` runs a script: what the script did not look for."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vmdebug.errors import UsageError, VmError

if TYPE_CHECKING:
    from vmdebug.channel.log.trouble import Trouble
    from vmdebug.session import DebugSession
    from vmdebug.vm.kernel_trouble import KernelTrouble


class TroubleWatch:
    """Watches the kernel of a session's VM; a context manager.

    Args:
        session: The session; it may restart its VM.
        boot: Whether trouble from before the block counts, too.
        allow: Kinds of trouble that do not count.
    """

    def __init__(self, session: DebugSession, *, boot: bool, allow: Collection[str] = ()) -> None:
        self._session = session
        self._boot = boot
        self._allow = frozenset(allow)
        self._held = contextlib.ExitStack()
        self._kernel: KernelTrouble | None = None
        self._shown = self._hidden = 0
        self._found: list[Trouble] = []

    def __enter__(self) -> Self:
        self._follow()
        if self._kernel is not None and not self._boot:
            self._kernel.all()
            self._shown, self._hidden = len(self._kernel.console.troubles), len(self._kernel.hidden)
        self._session.restarted = self._restarted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.restarted = None
        self._held.close()

    def error(self) -> VmError | None:
        """Look for trouble, and return the error with the splats, decoded; None if there is none."""
        refused = [each for each in self._all() if each.kind not in self._allow]
        if not refused:
            return None
        from vmdebug import postmortem
        from vmdebug.channel.log.trouble import in_words

        kinds = dict.fromkeys(each.kind for each in refused)
        return VmError(
            f"the kernel had trouble while the script ran: {in_words(refused)}",
            hint=f"if the script expects it: {' '.join(f'--allow {kind}' for kind in kinds)}",
            detail="\n\n".join(
                splat.text for splat in postmortem.splats(refused, self._session.vm.state.spec.kernel)
            ),
        )

    def _all(self) -> tuple[Trouble, ...]:
        """Look for trouble, and return all that counts."""
        if self._kernel is None:
            return tuple(self._found)
        now = self._kernel.all()
        shown = len(self._kernel.console.troubles)
        return (*self._found, *now[self._shown : shown], *now[shown + self._hidden :])

    def _follow(self) -> None:
        from vmdebug.vm.kernel_trouble import KernelTrouble

        with contextlib.suppress(FileNotFoundError):  # the VM has ended
            self._kernel = self._held.enter_context(KernelTrouble(self._session.vm))

    def _restarted(self) -> None:
        self._found = list(self._all())
        self._shown = self._hidden = 0
        self._held.close()
        self._kernel = None
        self._follow()


def check_kinds(allow: Sequence[str]) -> None:
    """Check the values of `--allow`.

    Raises:
        UsageError: there is no such kind of trouble.
    """
    from vmdebug.channel.log.trouble import KINDS
    from vmdebug.spelling import nearest

    for kind in allow:
        if kind not in KINDS:
            near = nearest(kind, KINDS)
            raise UsageError(
                f"--allow: there is no kind of trouble {kind!r}",
                hint=f"did you mean {near!r}?" if near else f"there are: {', '.join(KINDS)}",
            )
