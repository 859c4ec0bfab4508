"""A page for each verb of the command line and each GDB command, made from what `--help` and `help` print.

The pages are Markdown files in docs/reference/commands, which git ignores: Sphinx makes HTML and man pages
of them. Importing the verbs needs only typer, so the wheel's build can do it.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DIRECTORY = "reference/commands"
FIRST = f"{DIRECTORY}/vmdebug"

AUTHORS: list[str] = []

INTERNAL = {"vmd-run", "vmd-exit", "vmd-before-continue"}
"""GDB commands that vmdebug types itself."""

EXIT_STATUS = {
    0: "Success.",
    1: "The script, the test or the guest failed.",
    2: "Usage error: an option, a GUEST or vmdebug.toml is invalid.",
    3: "This machine lacks something: a program, a permission, disk space.",
    4: "The symbols do not match the kernel.",
    5: "A timeout passed.",
}

OWN_STATUS = {
    "exec": "That of the command in the guest.",
    "ssh": "That of ssh, which is that of the command in the guest; 255 if ssh cannot connect.",
    "run": "With `--bisect`: 0 good, 1 bad, 125 the commit cannot be tested.",
}
"""What a verb adds to the exit statuses of all verbs."""


def version(root: Path) -> str:
    """Return the version in pyproject.toml."""
    found: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    return found


def verbs() -> dict[str, str]:
    """Return each verb with the first line of its help."""
    from vmdebug.cli.app import VERBS  # noqa: PLC0415 - conf.py sets sys.path first

    return VERBS


def man_pages() -> list[tuple[str, str, str, list[str], int]]:
    """Return Sphinx's `man_pages`: vmdebug(1), one for each verb, and vmdebug.toml(5)."""
    return [
        (FIRST, "vmdebug", "debug Linux kernels in QEMU", AUTHORS, 1),
        *(
            (f"{DIRECTORY}/vmdebug-{verb}", f"vmdebug-{verb}", _decapitalized(says), AUTHORS, 1)
            for verb, says in verbs().items()
        ),
        ("reference/configuration", "vmdebug.toml", "guests with names, for vmdebug", AUTHORS, 5),
    ]


def _decapitalized(line: str) -> str:
    """Return the line as `whatis` lists it: "start a guest and leave it running"."""
    # Not "KUnit", "GDB", "QEMU's".
    first = line.split(maxsplit=1)[0]
    return (line[0].lower() + line[1:] if first[1:].islower() else line).rstrip(".")


def pages(root: Path) -> dict[str, str]:
    """Return the pages: the name of each file, and its Markdown."""
    import typer  # noqa: PLC0415 - the verbs import it as well

    top = typer.main.get_command(importlib.import_module("vmdebug.cli.app").app)
    context = _context(top, "vmdebug", None)
    made = {"vmdebug.md": "\n".join(_top(top, context))}
    for verb in verbs():
        command = top.get_command(context, verb)  # type: ignore[attr-defined]
        made[f"vmdebug-{verb}.md"] = "\n".join(_verb(verb, command, _context(command, verb, context)))
    made["gdb.md"] = "\n".join(_gdb(root))
    return made


def _context(command: Any, name: str, parent: Any) -> Any:
    return command.context_class(command, info_name=name, parent=parent, **command.context_settings)


def _top(command: Any, context: Any) -> Iterator[str]:
    yield "# vmdebug"
    yield from _synopsis(command, context)
    yield from _described(command)
    yield "\n## Options\n"
    yield from _options(command, context)
    yield "\n## Verbs\n"
    for verb, says in verbs().items():
        yield f"[**{verb}**](vmdebug-{verb}.md)\n: {_markdown(says)}\n"
    yield from _examples(command)
    yield from _exit_status("vmdebug")
    yield "\n## Files\n"
    yield "`vmdebug.toml`\n: Guests with names: see [vmdebug.toml(5)](../configuration.md).\n"
    yield "`$XDG_RUNTIME_DIR/vmdebug`, or `/tmp/vmdebug-UID`\n: Running VMs, with mode 0700.\n"
    yield "`~/.cache/vmdebug`\n: Built kernels and what was prepared once; you can delete it.\n"


def _verb(verb: str, command: Any, context: Any) -> Iterator[str]:
    yield f"# vmdebug-{verb}"
    inner = [(name, command.get_command(context, name)) for name in getattr(command, "commands", {})]
    if inner:
        yield "\n## Synopsis\n"
        for name, each in inner:
            yield from _usage(each, _context(each, name, context))
        yield from _described(command)
        for name, each in inner:
            deeper = _context(each, name, context)
            yield f"\n## {deeper.command_path}\n"
            yield from _help_text(each)
            yield ""
            yield from _options(each, deeper)
            yield from _example_lines(each, heading="Examples:\n")
    else:
        yield from _synopsis(command, context)
        yield from _described(command)
        yield "\n## Options\n"
        yield from _options(command, context)
        yield from _examples(command)
    yield from _exit_status(verb)
    yield "\n## See also\n"
    yield "[vmdebug(1)](vmdebug.md), [vmdebug.toml(5)](../configuration.md)"


def _synopsis(command: Any, context: Any) -> Iterator[str]:
    yield "\n## Synopsis\n"
    yield from _usage(command, context)


def _usage(command: Any, context: Any) -> Iterator[str]:
    words = " ".join(command.collect_usage_pieces(context)).replace("COMMAND [ARGS]...", "VERB …")
    yield f"**{context.command_path}** {_escaped(words)}\n"


def _described(command: Any) -> Iterator[str]:
    yield "\n## Description\n"
    yield from _help_text(command)


def _help_text(command: Any) -> Iterator[str]:
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```text\n{paragraph[2:]}\n```\n"
        else:
            yield _markdown(" ".join(paragraph.split())) + "\n"


def _options(command: Any, context: Any) -> Iterator[str]:
    """Yield the arguments and options, with the words of `--help`."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        names, says = record
        if parameter.param_type_name == "argument":
            yield f"`{names}`\n: {_markdown(says)}\n"
            continue
        # "-S, --halt / --no-halt", "--memory M": typer has no public method for the metavar alone.
        words = re.split(r"(?:, | / | )(?=-)", names)
        last, _, metavar = words[-1].partition(" ")
        marked = ", ".join(f"`{spelled}`" for spelled in (*words[:-1], last))
        shown = f"{marked} {_escaped(metavar)}" if metavar else marked
        yield f"{shown}\n: {_markdown(says)}\n"


def _examples(command: Any) -> Iterator[str]:
    yield from _example_lines(command, heading="## Examples\n")


def _example_lines(command: Any, heading: str) -> Iterator[str]:
    lines = (command.epilog or "").replace("\b\n", "").splitlines()[1:]
    if lines:
        yield f"\n{heading}"
        yield "```text"
        yield from (line.removeprefix("  ") for line in lines)
        yield "```"


def _exit_status(verb: str) -> Iterator[str]:
    yield "\n## Exit status\n"
    if own := OWN_STATUS.get(verb):
        yield f"{own} Otherwise:\n"
    for status, says in EXIT_STATUS.items():
        yield f"{status}\n: {says}\n"


def _gdb(root: Path) -> Iterator[str]:
    yield "# Commands in GDB\n"
    yield "What `help COMMAND` prints in a GDB that `vmdebug attach` has started. GDB's settings for them are"
    yield "variables, such as `$vmd_timeout`.\n"
    for name, usage, text in sorted(gdb_commands(root / "gdbinit")):
        yield f"## {name}\n"
        yield f"`{usage}`\n"
        for paragraph in text:
            example = paragraph.removeprefix("Example: ")
            yield _markdown(paragraph) + "\n" if example == paragraph else f"```text\n(gdb) {example}\n```\n"


def gdb_commands(directory: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the name, the usage and the paragraphs of each GDB command that people type.

    The first line of a command's docstring is "What it does: USAGE.".
    """
    for module in sorted(directory.glob("vmd_*.py")):
        for node in ast.parse(module.read_text()).body:
            text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) and _is_command(node) else None
            first, *rest = (text or "").split("\n\n")
            does, _, usage = " ".join(first.split()).removesuffix(".").partition(": vmd-")
            name = f"vmd-{usage.split(maxsplit=1)[0]}" if usage else ""
            if name and name not in INTERNAL:
                yield name, f"vmd-{usage}", [f"{does}.", *(" ".join(each.split()) for each in rest)]


def _is_command(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) == "gdb.Command" for base in node.bases)


_CODE = re.compile(r"(`[^`]*`)")


def _markdown(text: str) -> str:
    """Return the text with everything escaped that Markdown would change, except for code in backticks."""
    return "".join(part if part.startswith("`") else _escaped(part) for part in _CODE.split(text))


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]<>#~|$])", r"\\\1", text)


def write(directory: Path, made: dict[str, str]) -> None:
    """Write the pages that have changed, and remove those of verbs that are gone."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        path = directory / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def generate(root: Path, names: Iterable[str] = ()) -> None:
    """Write the pages, or only those whose names are given, to docs/reference/commands."""
    made = pages(root)
    write(root / "docs" / DIRECTORY, {name: made[name] for name in names} if names else made)


def _without_links(app: Sphinx, doctree: Any, _name: str) -> None:
    """Replace links to other pages by their text: a man page has no addresses for them."""
    from docutils import nodes  # noqa: PLC0415 - the tests read this module without Sphinx

    if app.builder.name == "man":
        for link in list(doctree.findall(nodes.reference)):
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the pages before Sphinx looks for its sources."""
    app.connect("doctree-resolved", _without_links)
    app.connect("config-inited", lambda _app, _config: generate(Path(app.srcdir).parent))
    return {"parallel_read_safe": True}
