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
    from vmdebug.vm.kernel_trouble import NewTrouble


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
        self._new: NewTrouble | None = None
        self._found: list[Trouble] = []

    def __enter__(self) -> Self:
        self._follow(earlier=self._boot)
        self._session.restarted = self._restarted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.restarted = None
        self._held.close()

    def error(self) -> VmError | None:
        """Look for trouble, and return the error with the splats, decoded; None if there is none."""
        self._look()
        refused = [each for each in self._found if each.kind not in self._allow]
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

    def _look(self) -> None:
        if self._new is not None:
            self._found += self._new.take()

    def _follow(self, *, earlier: bool) -> None:
        from vmdebug.vm.kernel_trouble import NewTrouble

        with contextlib.suppress(FileNotFoundError):  # the VM has ended
            self._new = self._held.enter_context(NewTrouble(self._session.vm, earlier=earlier))

    def _restarted(self) -> None:
        self._look()
        self._held.close()
        self._new = None
        self._follow(earlier=True)


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
