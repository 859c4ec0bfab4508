"""The MCP server without a VM: tools, what an agent may start, cancellation, words of errors."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.server import MCPServer

import vmdebug
from vmdebug import cli, extras
from vmdebug.cli import app
from vmdebug.errors import DeadlineError, HostError, StateError, UsageError
from vmdebug.faces.mcp import calls, described, results, server, words
from vmdebug.faces.mcp.calls import Call
from vmdebug.faces.mcp.guests import Permitted
from vmdebug.faces.mcp.machines import Machines

TOOLS = {
    *("start", "status", "attach", "detach", "stop", "snapshot", "restore", "exec", "trace", "dmesg", "log"),
    *("breakpoint", "continue", "interrupt", "step", "next", "finish", "backtrace", "variables", "evaluate"),
    "decode",
}


@pytest.fixture
def permitted(tmp_path: Path) -> Permitted:
    (tmp_path / "vmdebug.toml").write_text('[guest.mine]\nsource = "builtin"\nmemory = "2G"\n')
    return Permitted.of(["/src/linux"], tmp_path)


def served(built: MCPServer[Any], *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """Call tools of a server in this process, and return their results."""

    async def main() -> list[Any]:
        async with Client(built) as client:
            return [await client.call_tool(name, arguments) for name, arguments in asked]

    return anyio.run(main)


def with_tool(work: Any, machines: Machines | None = None) -> MCPServer[Any]:
    built: MCPServer[Any] = MCPServer("test")
    built.add_tool(calls.tool(machines or Machines(), "work", work), structured_output=True)
    return built


def test_every_tool_has_schemas_with_descriptions(permitted: Permitted) -> None:
    async def main() -> Any:
        async with Client(server.build(Machines(), permitted)) as client:
            return (await client.list_tools()).tools

    found = anyio.run(main)
    assert {each.name for each in found} == TOOLS
    for each in found:
        assert each.output_schema, each.name
        assert each.output_schema["type"] == "object"
        assert each.description
        described_ = [each for each in each.input_schema["properties"].values() if "description" in each]
        assert len(described_) == len(each.input_schema["properties"]), each.name
        assert not {"call", "context"} & set(each.input_schema["properties"])


def test_an_agent_starts_only_what_a_person_has_permitted(permitted: Permitted) -> None:
    assert permitted.names() == ("builtin", "mine", "/src/linux")
    assert permitted.options("mine", {"append": "loglevel=7"}).memory == 2048
    assert permitted.options("/src/linux", {}).source == "/src/linux"
    assert permitted.options(None, {}).source == "builtin"
    for guest in (".#base", "/bin/sh", "/src/linux/../other", "", "Mine"):
        with pytest.raises(UsageError, match="may not start the guest") as error:
            permitted.options(guest, {})
        assert error.value.hint.startswith("it may start: builtin, mine, /src/linux;")


@pytest.mark.parametrize("append", ["$(true)", "`true`", 'a"b', "a\\b", "a\nb", "\0"])
def test_kernel_parameters_that_a_shell_could_expand_are_refused(permitted: Permitted, append: str) -> None:
    with pytest.raises(UsageError, match="has a character that is refused here"):
        permitted.options("builtin", {"append": append})


def test_start_takes_no_option_that_names_a_file_or_a_program(permitted: Permitted) -> None:
    async def main() -> Any:
        async with Client(server.build(Machines(), permitted)) as client:
            return next(each for each in (await client.list_tools()).tools if each.name == "start")

    start = anyio.run(main)
    taken = {"guest", "name", "halt", "append", "kaslr", "memory", "cpus", "accel", "timeout"}
    assert set(start.input_schema["properties"]) == taken


def test_errors_are_results_with_what_to_do(runtime: Path, permitted: Permitted) -> None:
    refused, unknown = served(
        server.build(Machines(), permitted), ("evaluate", {"expression": "1"}), ("start", {"guest": "x"})
    )
    assert refused.is_error
    assert unknown.is_error
    assert refused.structured_content == {
        "kind": "UsageError",
        "message": "no VM runs",
        "hint": "start one: `start`",
        "detail": "",
        "exit_status": 2,
    }
    assert refused.content[0].text == "no VM runs\nstart one: `start`"


def test_a_misspelt_argument_is_refused(runtime: Path, permitted: Permitted) -> None:
    with Machines(allow_existing=False) as machines:
        built = server.build(machines, permitted)
        (refused,) = served(built, ("status", {"nmae": "vm"}))
    assert refused.is_error
    assert "nmae" in refused.content[0].text


def test_a_bug_is_an_error_of_the_tool_and_the_server_goes_on() -> None:
    def work(call: Call) -> results.Done:
        raise ZeroDivisionError("oh")

    built = with_tool(work)
    first, second = served(built, ("work", {}), ("work", {}))
    assert first.structured_content["message"] == "internal error: ZeroDivisionError: oh"
    assert second.is_error


def test_a_full_disk_is_an_error_with_its_file() -> None:
    def work(call: Call) -> results.Done:
        raise OSError(2, os.strerror(2), "/nowhere")

    (found,) = served(with_tool(work), ("work", {}))
    assert found.structured_content["message"] == "No such file or directory: /nowhere"
    assert found.structured_content["exit_status"] == HostError.exit_status


def test_a_cancelled_call_is_interrupted_and_its_thread_ends() -> None:
    waits, interrupted, ended = threading.Event(), threading.Event(), threading.Event()

    def work(call: Call) -> results.Done:
        with call.interrupted_by(interrupted.set, "waiting"):
            waits.set()
            assert interrupted.wait(60)
        ended.set()
        return results.Done("it went on")

    async def main() -> None:
        async with Client(with_tool(work)) as client, anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "work", {})
            await anyio.to_thread.run_sync(waits.wait)
            group.cancel_scope.cancel()

    anyio.run(main)
    assert ended.wait(60)


def test_a_cancelled_call_does_not_begin_another_step() -> None:
    call = Call(Machines(), "continue")
    call.cancel()
    with pytest.raises(StateError, match="continue was cancelled"), call.interrupted_by(lambda: None, "x"):
        raise AssertionError


def test_progress_has_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PROGRESS_SECONDS", 0.01)
    told = threading.Event()
    seen: list[str | None] = []

    def work(call: Call) -> results.Done:
        call.step = "building"
        assert told.wait(60)
        return results.Done("built")

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        seen.append(message)
        told.set()

    async def main() -> Any:
        async with Client(with_tool(work)) as client:
            return await client.call_tool("work", {}, progress_callback=reported)

    assert anyio.run(main).structured_content == {"done": "built"}
    assert seen[0] in ("work", "building")


def test_a_second_call_on_a_vm_says_which_one_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmdebug.faces.mcp.machines.TURN_SECONDS", 0.01)
    machines = Machines()

    class Session:
        name = "one"

    from vmdebug.faces.mcp.machines import Held  # noqa: PLC0415 - the double stands for a session

    machines._held["one"] = Held(Session(), started=True)  # type: ignore[arg-type]
    with (
        machines.using("one", "continue"),
        pytest.raises(StateError, match="one is busy: the call of `continue` has not ended"),
        machines.using("one", "step"),
    ):
        raise AssertionError
    with machines.using(None, "step") as held:
        assert held.doing == "step"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (-2, "ENOENT"),
        (2**64 - 2, "ENOENT"),
        (2**32 - 22, "EINVAL"),
        (0, ""),
        (2, ""),
        (None, ""),
        (0xFFFF888000001000, ""),
        (-5000, ""),
    ],
)
def test_errors_that_functions_return_have_names(value: int | None, name: str) -> None:
    assert described.error(value) == name


@given(st.integers(min_value=-(2**63), max_value=2**64 - 1))
def test_numbers_survive_readers_of_json_that_round(value: int) -> None:
    shown = described.argument(value)
    assert (int(shown, 16) if isinstance(shown, str) else int(float(str(shown)))) == value


def test_every_phrase_is_one_of_vmdebug() -> None:
    package = Path(vmdebug.__file__).parent
    texts = "\n".join(path.read_text() for path in package.rglob("*.py") if "faces/mcp" not in str(path))
    # An f-string is in the source with its braces, and a long one in several lines.
    texts = re.sub(r'"\s+f?"', "", re.sub(r"\{[^{}\n]*\}", "NAME", texts))
    for found, _ in words.PHRASES:
        assert re.search(found, texts), found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "it still runs: interrupt() stops it",
            "it still runs: `interrupt` stops it, `continue` waits again",
        ),
        ("set it running: session.gdb.cont(wait=False)", "set it running: `continue` with wait=false"),
        ("start one: vmdebug start", "start one: `start`"),
        ("pending=True waits for the module", "pending=true waits for the module"),
    ],
)
def test_hints_name_tools(text: str, told: str) -> None:
    assert words.for_agents(text) == told


def test_options_are_spelled_as_arguments() -> None:
    assert words.option("kaslr", value=True) == "kaslr=true"
    assert words.option("accel", "tcg") == 'accel="tcg"'


def test_deadlines_keep_their_status() -> None:
    def work(call: Call) -> results.Done:
        raise DeadlineError(
            "waited 1 s for the guest to stop, in cont", hint="it still runs: interrupt() stops it"
        )

    (found,) = served(with_tool(work), ("work", {}))
    assert found.structured_content["exit_status"] == 5
    assert "`interrupt` stops it" in found.content[0].text


def test_without_the_sdk_the_status_is_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="mcp")

    monkeypatch.setattr(extras, "import_module", missing)
    assert cli.status_of(["mcp"]) == HostError.exit_status
    assert "pip install 'vmdebug[mcp]'" in capsys.readouterr().err


def test_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert cli.status_of(["mcp"]) == UsageError.exit_status
    assert "docs/howto/agents.md" in capsys.readouterr().err
    assert "mcp" in app.VERBS
