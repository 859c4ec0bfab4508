"""The debug adapter without a guest: its wire, arguments, paths, and what the client is told of stops."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug.errors import HostError, UsageError
from vmdebug.faces import compile_commands, editors
from vmdebug.faces.dap import arguments, capabilities, program
from vmdebug.faces.dap.runs import Runs
from vmdebug.faces.dap.sources import OTHER_VERSION, Sources, is_tree
from vmdebug.faces.dap.wire import Log, MessageReader, MessageWriter
from vmdebug.kimage.units import Unit

JSON = st.dictionaries(st.text(), st.none() | st.integers(-(2**53), 2**53) | st.text() | st.lists(st.text()))


@given(st.lists(JSON.filter(lambda each: "seq" not in each)))
def test_messages_survive_the_wire(messages: list[dict[str, Any]]) -> None:
    stream = io.BytesIO()
    writer = MessageWriter(stream, Log(None), "test")
    for message in messages:
        writer.write(message)
    stream.seek(0)
    reader = MessageReader(stream)
    for number, message in enumerate(messages, 1):
        assert reader.read() == {"seq": number, **message}
    assert reader.read() is None


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_message_that_is_cut_off_is_the_end(cut: int) -> None:
    assert MessageReader(io.BytesIO(b'Content-Length: 7\r\n\r\n{"a":1}'[: -1 - cut])).read() is None


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"\r\n",
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: 99999999999\r\n\r\n",
        b"a" * 5000,
        b"Content-Length: 3\r\n\r\n[1]",
        b"Content-Length: 3\r\n\r\n{x}",
    ],
)
def test_what_is_no_message_is_named(data: bytes) -> None:
    with pytest.raises(UsageError, match="expected a message of the Debug Adapter Protocol"):
        MessageReader(io.BytesIO(data)).read()


def test_launch_takes_the_options_of_start_and_of_the_session() -> None:
    asked = arguments.parse(
        "launch",
        {
            "name": "the editor's title",
            "type": "vmdebug",
            "request": "launch",
            "__sessionId": "x",
            "guest": "builtin",
            "vm": "mine",
            "kernel": "/boot/vmlinuz",
            "gdb-scripts": "/scripts",
            "load_modules": False,
            "stopOnEntry": True,
            "initCommands": ["lx-ps"],
            "sourceMap": {"/build": "/src"},
            "until": None,
        },
    )
    assert asked.said == {
        "name": "mine",
        "kernel": "/boot/vmlinuz",
        "gdb_scripts": "/scripts",
        "load_modules": False,
    }
    assert asked.session == arguments.Session(
        guest="builtin",
        vm="mine",
        stop_on_entry=True,
        init_commands=("lx-ps",),
        source_map={"/build": "/src"},
    )
    assert asked.ignored == ()


def test_unknown_arguments_are_told_and_mistyped_ones_refused() -> None:
    assert arguments.parse("attach", {"zzz": 1}).ignored == (
        'vmdebug: attach has no argument "zzz", which is ignored',
    )
    with pytest.raises(UsageError, match="initComands") as error:
        arguments.parse("attach", {"initComands": []})
    assert error.value.hint == 'did you mean "initCommands"?'


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"initCommands": "bt"}, '"initCommands": Expected `list`, got `str`'),
        ({"timeout": "x"}, '"timeout": Expected `float`, got `str`'),
        ({"kernel": "x", "guest": "y"}, "attach does not take guest, kernel: that VM runs already"),
    ],
)
def test_wrong_arguments_are_named(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        arguments.parse("attach", given_)
    assert error.value.message == words


def test_options_are_spelled_as_arguments() -> None:
    assert arguments.spell("name", "x") == '"vm": "x"'
    assert arguments.spell("kaslr", value=True) == '"kaslr": true'


def _tree(top: Path, **files: str) -> Path:
    for name in ("Kbuild", "init/main.c", "kernel/signal.c", "arch/x86/kernel/signal.c"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(files.get(name, name))
    return top


def test_paths_of_another_checkout_are_translated_both_ways(tmp_path: Path) -> None:
    built, shown = _tree(tmp_path / "built"), _tree(tmp_path / "shown")
    sources = Sources(built, shown)
    assert is_tree(shown)
    assert not is_tree(tmp_path)
    for tail in ("kernel/signal.c", "arch/x86/kernel/signal.c"):
        assert sources.to_gdb(str(shown / tail)) == (str(built / tail), "")
        assert sources.to_gdb(str(built / tail)) == (str(built / tail), "")
        assert sources.to_gdb(tail) == (str(built / tail), "")
        source = {"name": "signal.c", "path": str(built / tail), "sourceReference": 3}
        assert sources.to_client(source) == {"name": "signal.c", "path": str(shown / tail)}
    assert sources.translated(
        {"stackFrames": [{"source": {"path": f"/nowhere/../gone/{'kernel/signal.c'}"}}]}
    ) == {"stackFrames": [{"source": {"path": str(shown / "kernel/signal.c")}}]}


def test_a_file_of_another_version_is_not_shown_in_place_of_the_built_one(tmp_path: Path) -> None:
    built = _tree(tmp_path / "built")
    shown = _tree(tmp_path / "shown", **{"kernel/signal.c": "something else"})
    sources = Sources(built, shown)
    path = str(built / "kernel/signal.c")
    assert sources.to_gdb(str(shown / "kernel/signal.c")) == (path, OTHER_VERSION)
    assert sources.to_client({"path": path})["path"] == path


def test_a_file_that_is_nowhere_keeps_its_reference() -> None:
    source = {"path": "/gone/x.c", "sourceReference": 1}
    assert Sources(None, None).to_client(source) == {
        **source,
        "origin": "this machine does not have the file",
    }


class Told(list[tuple[str, dict[str, Any]]]):
    def emit(self, event: str, body: dict[str, Any]) -> None:
        self.append((event, body))


def _runs() -> tuple[Runs, Told]:
    told = Told()
    return Runs(told.emit), told


STOP = {"threadId": 1, "allThreadsStopped": True, "reason": "breakpoint", "hitBreakpointIds": [4]}


def test_a_hit_is_told_and_hidden_ones_are_not() -> None:
    runs, told = _runs()
    runs.resumed()
    runs.stopped(STOP)
    assert told == [("stopped", STOP)]
    with runs.hidden():
        runs.continued({})
        runs.stopped(STOP)
    assert len(told) == 1
    assert not runs.interrupted


def test_an_internal_stop_that_continues_is_not_told() -> None:
    runs, told = _runs()
    runs.stopped({**STOP, "hitBreakpointIds": [-3]})
    runs.continued({})
    assert told == []
    runs.stopped(STOP)
    assert [event for event, _ in told] == ["stopped"]


def test_reasons_are_what_the_client_asked_for() -> None:
    runs, told = _runs()
    runs.pausing = True
    runs.stopped({"threadId": 1, "reason": "signal"})
    runs.trouble = {9: "panic"}
    runs.stopped({**STOP, "hitBreakpointIds": [9]})
    with runs.hidden():
        runs.stopped({**STOP, "hitBreakpointIds": [-2]})
    runs.tell()
    runs.tell("entry")
    assert [body["reason"] for _, body in told] == ["pause", "exception", "step", "entry"]
    assert "hitBreakpointIds" not in told[2][1]


def test_capabilities_that_gdb_lacks_are_taken_back() -> None:
    able = dict.fromkeys(capabilities.AT_FIRST, True)
    assert capabilities.changes(able, replays=False) == {}
    assert capabilities.changes(able, replays=True) == {"supportsStepBack": True}
    del able["supportsLogPoints"]
    assert capabilities.changes(able, replays=False) == {"supportsLogPoints": False}


def test_an_old_gdb_is_refused_with_what_to_install(tmp_path: Path) -> None:
    gdb = tmp_path / "gdb"
    gdb.write_text("#!/bin/sh\necho 'GNU gdb (Debian 13.1-3) 13.1'\n")
    gdb.chmod(0o755)
    with pytest.raises(
        HostError, match=r"needs GDB 14 or newer, and --gdb is GNU gdb \(Debian 13.1-3\) 13.1"
    ) as error:
        program.find(str(gdb))
    assert error.value.hint == "install it: pip install 'vmdebug[gdb]'"
    gdb.write_text("#!/bin/sh\necho 'GNU gdb (GDB) 18.1'\n")
    assert program.find(f"{gdb} -nx").version == "18.1"
    with pytest.raises(HostError, match="--gdb cannot be used"):
        program.find(str(tmp_path / "none"))
    with pytest.raises(HostError, match="--gdb '/opt/gdb: No closing quotation"):
        program.find("'/opt/gdb")


def test_each_editor_gets_a_configuration_that_starts_the_adapter() -> None:
    wanted = editors.Wanted(guest="~/src/linux", command=("/opt/vmdebug",))
    for make in editors.EDITORS.values():
        text = "".join(each.text for each in make(wanted))
        assert "~/src/linux" in text
        assert "start_kernel" in text
    launch, manifest = editors.vscode(wanted)
    assert [each["request"] for each in json.loads(launch.text)["configurations"]] == [
        "launch",
        "launch",
        "attach",
    ]
    assert json.loads(manifest.text)["contributes"]["debuggers"][0]["args"] == ["dap"]


def test_zed_starts_the_adapter_in_place_of_one_that_it_knows() -> None:
    wanted = editors.Wanted(guest="builtin", command=("/opt/vmdebug",))
    settings, debug = editors.zed(wanted)
    assert (settings.path, debug.path) == (".zed/settings.json", ".zed/debug.json")
    assert json.loads(settings.text) == {"dap": {"CodeLLDB": {"binary": "/opt/vmdebug", "args": ["dap"]}}}
    entries = json.loads(debug.text)
    assert [each["request"] for each in entries] == ["launch", "launch", "attach"]
    for each in entries:
        assert each.pop("adapter") == "CodeLLDB"
        # Zed sends the label as the name, and the project's directory as cwd.
        sent = {**each, "name": each.pop("label"), "cwd": "/home/me/linux"}
        assert arguments.parse(each["request"], sent).ignored == ()


def test_emacs_waits_for_a_guest_to_start() -> None:
    (file,) = editors.emacs(editors.Wanted())
    assert "(setq dape-request-timeout (max 300 " in file.text
    assert file.text.count("(") == file.text.count(")")


def test_templates_of_helix_have_all_that_it_needs() -> None:
    (file,) = editors.helix(editors.Wanted(guest="builtin", command=("/opt/vmdebug",)))
    (language,) = tomllib.loads(file.text)["language"]
    debugger = language["debugger"]
    assert (debugger["transport"], debugger["command"], debugger["args"]) == (
        "stdio",
        "/opt/vmdebug",
        ["dap"],
    )
    assert [each["args"] for each in debugger["templates"]] == [
        {"guest": "builtin"},
        {"guest": "builtin", "until": "start_kernel"},
        {},
    ]
    for template in debugger["templates"]:
        assert set(template) == {"name", "request", "completion", "args"}
        assert template["completion"] == []


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (
            "savedcmd_fs/open.o := gcc -DX='\"a\\#b\"' -c -o fs/open.o ../fs/open.c ; ./tools/objtool x",
            None,
        ),
        ("cmd_fs/open.o := gcc -DX='\"a\\#b\"' -c -o fs/open.o ../fs/open.c", None),
        ("cmd_fs/built-in.a := ar cDPrST fs/built-in.a fs/open.o", ""),
    ],
)
def test_commands_of_kbuild_are_read(line: str, command: str | None) -> None:
    found = compile_commands.parse(line, Path("/build/out"))
    if command is None:
        assert found == compile_commands.Command(
            "/build/out", "gcc -DX='\"a#b\"' -c -o fs/open.o ../fs/open.c", "/build/fs/open.c"
        )
    else:
        assert found is None


def test_commands_are_made_of_what_gcc_recorded() -> None:
    units = (
        Unit("/src/fs/open.c", "/build", "GNU C11 12.2.0 -m64 -O2"),
        Unit("/src/arch/x86/entry/entry_64.S", "/build", "GNU AS 2.40"),
    )
    (found,) = compile_commands.recorded(units, Path("/src"), "x86")
    assert (found.file, found.directory) == ("/src/fs/open.c", "/build")
    words = found.command.split()
    assert words[:2] == ["gcc", "-nostdinc"]
    assert words[-2:] == ["-c", "/src/fs/open.c"]
    assert "-I/src/arch/x86/include" in words
    assert "-I/build/include/generated/uapi" in words
    assert "-m64" in words
    assert "-DKBUILD_MODNAME='\"open\"'" in words


def test_a_database_is_written(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/.open.o.cmd").write_text(
        "cmd_fs/open.o := gcc -c -o fs/open.o fs/open.c\n\nsource_fs/open.o := x\n"
    )
    assert compile_commands.write(tmp_path, compile_commands.commands(tmp_path)) == 1
    assert json.loads((tmp_path / compile_commands.NAME).read_text()) == [
        {
            "directory": str(tmp_path),
            "command": "gcc -c -o fs/open.o fs/open.c",
            "file": str(tmp_path / "fs/open.c"),
        }
    ]
    with pytest.raises(UsageError, match="no kernel was built in"):
        compile_commands.write(tmp_path, ())
