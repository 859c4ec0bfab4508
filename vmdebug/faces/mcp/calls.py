"""One call of a tool: a blocking function in a thread, with progress, cancellation, and errors as results."""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, TextContent

from vmdebug import paths, spelling
from vmdebug.errors import HostError, StateError, VmdebugError
from vmdebug.faces.mcp import words
from vmdebug.faces.mcp.machines import Machines
from vmdebug.faces.mcp.results import Failure
from vmdebug.progress import Step

PROGRESS_SECONDS = 1.0
"""How often a call reports progress; clients extend their timeouts by it."""

RETRY_SECONDS = 0.5
"""How often a cancelled call is interrupted again: one attempt may be lost."""

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


class CancelledCallError(StateError):
    """The client has cancelled the call; nobody reads this error."""


class Call:
    """One call of a tool, for the function that does its work.

    Args:
        machines: The VMs of the server.
        tool: The tool's name.
    """

    def __init__(self, machines: Machines, tool: str) -> None:
        self.machines = machines
        self.tool = tool
        self.cancelled = threading.Event()
        self.step = tool
        """What the call does now, for the progress."""
        self._interrupt: Callable[[], object] | None = None

    def report(self, step: Step) -> None:
        """Note a step of `vmdebug.progress`.

        Raises:
            CancelledCallError: the call is cancelled.
        """
        self.step = f"{step.what}: {step.note}" if step.note else step.what
        self.check()

    def check(self) -> None:
        """Raise if the call is cancelled.

        Raises:
            CancelledCallError: it is.
        """
        if self.cancelled.is_set():
            raise CancelledCallError(f"{self.tool} was cancelled")

    @contextlib.contextmanager
    def interrupted_by(self, interrupt: Callable[[], object], step: str) -> Iterator[None]:
        """Set what ends the waiting in the block if the call is cancelled.

        Args:
            interrupt: Called in another thread, again and again until the block ends.
            step: What the block waits for.
        """
        self.step, self._interrupt = step, interrupt
        try:
            self.check()
            yield
        finally:
            self._interrupt = None

    def cancel(self) -> None:
        """Cancel the call; called in another thread."""
        self.cancelled.set()
        if self._interrupt is not None:
            with contextlib.suppress(VmdebugError):
                self._interrupt()


def tool(machines: Machines, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that the SDK calls for a tool.

    Args:
        machines: The VMs of the server.
        name: The tool's name.
        work: Does the work: takes a `Call`, then the tool's arguments, and returns one of `results`.
    """

    async def handler(context: Context, **arguments: Any) -> Any:
        call = Call(machines, name)
        outcome = await _in_thread(call, context, lambda: _outcome(lambda: work(call, **arguments)))
        return outcome if not isinstance(outcome, Failure) else _error(outcome)

    hints = typing.get_type_hints(work, include_extras=True)
    given = list(inspect.signature(work).parameters.values())[1:]
    taken = [each.replace(annotation=hints[each.name]) for each in given]
    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=Context)
    signature = inspect.Signature([*taken, first], return_annotation=hints["return"])
    vars(handler)["__signature__"] = signature
    handler.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    handler.__annotations__["return"] = hints["return"]
    handler.__name__, handler.__doc__ = name, work.__doc__
    return handler


async def _in_thread(call: Call, context: Context, work: Callable[[], _Result]) -> _Result:
    """Run the work in a thread to its end, also if the call is cancelled; then it is interrupted."""
    done = anyio.Event()
    results: list[_Result] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_cancelled, call, done)
        group.start_soon(_progressing, call, context)
        with anyio.CancelScope(shield=True):
            results.append(await anyio.to_thread.run_sync(work))
            done.set()
        group.cancel_scope.cancel()
    return results[0]


async def _cancelled(call: Call, done: anyio.Event) -> None:
    try:
        await done.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            while not done.is_set():
                await anyio.to_thread.run_sync(call.cancel)
                with anyio.move_on_after(RETRY_SECONDS):
                    await done.wait()
        raise


async def _progressing(call: Call, context: Context) -> None:
    began = time.monotonic()
    while True:
        await anyio.sleep(PROGRESS_SECONDS)
        await context.report_progress(round(time.monotonic() - began, 1), message=call.step)


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        with spelling.spelled(words.option):
            return work()
    except VmdebugError as error:
        return _failure(error)
    except OSError as error:
        return _failure(HostError(paths.failure(error)))
    except Exception as error:  # noqa: BLE001 - the server goes on
        _log.exception("internal error")
        return _failure(
            VmdebugError(
                f"internal error: {type(error).__name__}: {error}",
                hint="the server's stderr has the traceback",
            )
        )


def _failure(error: VmdebugError) -> Failure:
    message, hint = words.for_agents(error.message), words.for_agents(error.hint)
    return Failure(type(error).__name__, message, hint, error.detail, error.exit_status)


def _error(failure: Failure) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=failure.text())],
        structured_content=failure.fields(),
        is_error=True,
    )
