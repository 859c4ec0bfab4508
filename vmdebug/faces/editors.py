"""The configuration of editors for `vmdebug dap`, and of clangd for a kernel's tree.

Each is a text with the file that the editor reads it from. Pure: writing is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration is for.

    Args:
        guest: GUEST; None: the default one.
        command: The words that run vmdebug.
    """

    guest: str | None = None
    command: tuple[str, ...] = ("vmdebug",)


class EditorFile(msgspec.Struct, frozen=True):
    """A file of an editor's configuration.

    Args:
        path: Where the editor reads it: relative to the project, or below the home directory (`~`).
        text: Its content.
        whole: Whether the file is ours alone; otherwise people have their own settings in it.
    """

    path: str
    text: str
    whole: bool = True


def _configurations(wanted: Wanted, **more: Any) -> list[dict[str, Any]]:
    guest = {} if wanted.guest is None else {"guest": wanted.guest}
    kind = {"type": "vmdebug"}
    return [
        {"name": "vmdebug: start a guest", **kind, "request": "launch", **guest, **more},
        {
            "name": "vmdebug: start a guest, stop at start_kernel",
            **kind,
            "request": "launch",
            **guest,
            "until": "start_kernel",
            **more,
        },
        {"name": "vmdebug: attach to the running guest", **kind, "request": "attach", **more},
    ]


def vscode(wanted: Wanted) -> tuple[EditorFile, ...]:
    """Return launch.json, and the extension that tells VS Code how to start the adapter.

    VS Code starts an adapter only for a debug type that an extension contributes; an extension of one
    package.json in its directory of extensions is enough.
    """
    manifest = {
        "name": "vmdebug",
        "publisher": "vmdebug",
        "displayName": "vmdebug",
        "version": "0.1.0",
        "engines": {"vscode": "^1.80.0"},
        "categories": ["Debuggers"],
        "contributes": {
            "breakpoints": [{"language": name} for name in ("c", "cpp", "rust", "asm")],
            "debuggers": [
                {
                    "type": "vmdebug",
                    "label": "Linux guest (vmdebug)",
                    "languages": ["c", "rust"],
                    "program": wanted.command[0],
                    "args": [*wanted.command[1:], "dap"],
                    "initialConfigurations": _configurations(wanted),
                }
            ],
        },
    }
    launch = {"version": "0.2.0", "configurations": _configurations(wanted)}
    return (
        EditorFile(".vscode/launch.json", _json(launch), whole=False),
        EditorFile("~/.vscode/extensions/vmdebug.vmdebug-0.1.0/package.json", _json(manifest)),
    )


def nvim(wanted: Wanted) -> tuple[EditorFile, ...]:
    """Return the configuration of nvim-dap, a plugin file that Neovim reads by itself."""
    command, words = _lua(wanted.command[0]), _lua([*wanted.command[1:], "dap"])
    adapter = (
        f"{{ type = 'executable', command = {command}, args = {words},"
        " options = { initialize_timeout_sec = 30 } }"
    )
    entries = "\n".join(f"  {_lua(each)}," for each in _configurations(wanted))
    text = (
        f"local dap = require('dap')\ndap.adapters.vmdebug = {adapter}\n"
        f"local configurations = {{\n{entries}\n}}\n"
        "for _, language in ipairs({ 'c', 'cpp', 'rust', 'asm' }) do\n"
        "  dap.configurations[language] = dap.configurations[language] or {}\n"
        "  vim.list_extend(dap.configurations[language], configurations)\n"
        "end\n"
    )
    return (EditorFile("~/.config/nvim/after/plugin/vmdebug.lua", text),)


EMACS_SECONDS = 300
"""How long dape waits for an answer; the 10 seconds of jsonrpc are less than a guest's start may take."""


def emacs(wanted: Wanted) -> tuple[EditorFile, ...]:
    """Return entries of `dape-configs`, for dape, and its time limit for requests."""
    program, words = wanted.command[0], [*wanted.command[1:], "dap"]
    lines = [
        "(with-eval-after-load 'dape",
        f"  (setq dape-request-timeout (max {EMACS_SECONDS} (or dape-request-timeout 0)))",
    ]
    for each in _configurations(wanted):
        name = each["name"].removeprefix("vmdebug: ").replace(",", "").replace(" ", "-")
        given = {key: value for key, value in each.items() if key != "name"}
        pairs = " ".join(f":{key} {json.dumps(value)}" for key, value in given.items())
        args = " ".join(json.dumps(word) for word in words)
        lines += [
            "  (add-to-list 'dape-configs",
            f"    '(vmdebug-{name} modes (c-mode c-ts-mode c++-mode rust-mode rust-ts-mode asm-mode)",
            f"      command {json.dumps(program)} command-args ({args}) {pairs}))",
        ]
    return (EditorFile("~/.emacs.d/vmdebug.el", "\n".join(lines) + ")\n"),)


_ZED = "CodeLLDB"
"""The adapter of Zed that ours replaces: an adapter of another name needs an extension, compiled to WASM.

Of those that Zed brings for C, this one sends the arguments as they are and starts the program with the
arguments of the settings alone (crates/dap_adapters/src/codelldb.rs); GDB's appends its own.
"""


def zed(wanted: Wanted) -> tuple[EditorFile, ...]:
    """Return the project's settings of Zed, which start our adapter for CodeLLDB, and its debug.json."""
    program = {"binary": wanted.command[0], "args": [*wanted.command[1:], "dap"]}
    entries = [
        {
            "label": each["name"],
            "adapter": _ZED,
            **{key: value for key, value in each.items() if key not in ("name", "type")},
        }
        for each in _configurations(wanted)
    ]
    return (
        EditorFile(".zed/settings.json", _json({"dap": {_ZED: program}}), whole=False),
        EditorFile(".zed/debug.json", _json(entries), whole=False),
    )


def helix(wanted: Wanted) -> tuple[EditorFile, ...]:
    """Return a debugger of languages.toml, for C. Helix has one debugger a language."""
    lines = [
        "[[language]]",
        'name = "c"',
        "",
        "[language.debugger]",
        'name = "vmdebug"',
        'transport = "stdio"',
        f"command = {json.dumps(wanted.command[0])}",
        f"args = {json.dumps([*wanted.command[1:], 'dap'])}",
    ]
    for each in _configurations(wanted):
        rest = {key: value for key, value in each.items() if key not in ("name", "type", "request")}
        pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in rest.items())
        lines += [
            "",
            "[[language.debugger.templates]]",
            f"name = {json.dumps(each['name'])}",
            f"request = {json.dumps(each['request'])}",
            "completion = []",
            f"args = {{ {pairs} }}" if pairs else "args = {}",
        ]
    return (EditorFile(".helix/languages.toml", "\n".join(lines) + "\n", whole=False),)


EDITORS: dict[str, Callable[[Wanted], tuple[EditorFile, ...]]] = {
    "vscode": vscode,
    "nvim": nvim,
    "emacs": emacs,
    "zed": zed,
    "helix": helix,
}


def clangd(database: Path) -> EditorFile:
    """Return clangd's settings for a kernel's tree.

    Args:
        database: The directory with compile_commands.json.
    """
    text = (
        "# Options of gcc that clang does not know, and warnings that gcc does not have.\n"
        "CompileFlags:\n"
        f"  CompilationDatabase: {json.dumps(str(database))}\n"
        "  Remove: [-fconserve-stack, -fno-allow-store-data-races, -mabi=*, -mpreferred-stack-boundary=*,\n"
        "    -mindirect-branch*, -mfunction-return=*, -fmin-function-alignment=*,\n"
        "    -fzero-init-padding-bits=*, -mskip-rax-setup, -falign-jumps=*, -fplugin*, -mrecord-mcount,\n"
        "    -ftrivial-auto-var-init=*]\n"
        "Diagnostics:\n"
        "  Suppress: [unknown_warning_option, drv_unsupported_opt_for_target]\n"
        "  UnusedIncludes: None\n"
    )
    return EditorFile(".clangd", text, whole=False)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _lua(value: Any) -> str:
    """Return a value as Lua: a key may be a keyword (`until`); strings have JSON's escapes, as Lua does."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"[{_lua(key)}] = {_lua(each)}" for key, each in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "{ " + ", ".join(map(_lua, value)) + " }"
    return json.dumps(value, ensure_ascii=False)
