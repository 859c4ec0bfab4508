"""The documentation: its links, its commands, its code, and the pages that are generated."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.fixtures.transcripts import ROOT, Block, blocks, differs, pages, read
from vmdebug.cli import app

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import commands_reference

BLOCKS = [block for page in pages() for block in blocks(page)]


def test_transcripts_are_run_or_say_why_not() -> None:
    from tests.guest.test_docs import PAGES  # noqa: PLC0415 - its fixtures need a kernel, its table does not

    unmarked = [
        f"{block.page}:{block.line}"
        for block in BLOCKS
        if block.language == "console" and not block.mark and block.page not in PAGES
    ]
    assert not unmarked, f"add the page to tests/guest/test_docs.py, or <!-- not run: REASON -->: {unmarked}"


def test_transcripts_are_marked_as_such() -> None:
    indented = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages()
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if re.match(r"    \$ ", line)
    ]
    assert not indented, f"write transcripts as ```console blocks, which tests run: {indented}"


COMMAND = re.compile(r"^(?:    |[$#] )(vmdebug (?:.*\\\n)*.*)", re.MULTILINE)


def command_lines() -> Iterator[tuple[str, str]]:
    """Return where each `vmdebug …` of the documentation is, in transcripts and in indented code."""
    for page in pages():
        text = page.read_text()
        for found in COMMAND.finditer(text):
            yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}", found[1]


@pytest.mark.parametrize(("where", "line"), [pytest.param(*each, id=each[0]) for each in command_lines()])
def test_commands_can_be_parsed(where: str, line: str) -> None:
    plain = re.sub(r"\$\(.*?\)", "X", re.sub(r"\s+# .*", "", line.replace("\\\n", "")))
    words = shlex.split(plain)[1:]
    redirected = [i for i, word in enumerate(words) if re.match(r"\d?[<>|&;]", word)]
    words = words[: redirected[0]] if redirected and "--" not in words[: redirected[0]] else words
    assert parsed(words), where


def parsed(words: list[str]) -> bool:
    """Parse a command line as the program does, and run nothing."""
    if words == ["--help"] or "…" in words or "[GUEST]" in words:
        return True
    top = typer.main.get_command(app.app)
    context = top.make_context("vmdebug", words)
    command: Any = top
    while context._protected_args or context.args:
        words = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, words)
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "commands"):
            return True
    return command is not top


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_python_can_be_parsed(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "toml"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_toml_can_be_parsed(block: Block) -> None:
    assert tomllib.loads(block.text)


LINK = re.compile(r"\]\((?!https?://|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, which GitHub and the site make in the same way."""
    plain = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "findings/README.md")]


@pytest.mark.parametrize("page", [*pages(), *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        generated = target.parent.name == "commands" or target.name == "api.md"
        assert generated or target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]


def test_every_verb_has_a_page_with_the_words_of_its_help() -> None:
    made = commands_reference.pages(ROOT)
    assert {f"vmdebug-{verb}.md" for verb in app.VERBS} == set(made) - {"vmdebug.md", "gdb.md"}
    assert "`-S`, `--halt`, `--no-halt`\n: Stop before the first instruction" in made["vmdebug-start.md"]
    assert "**vmdebug kernel config** \\[OPTIONS\\]" in made["vmdebug-kernel.md"]
    assert "vmdebug stop --all --force" in made["vmdebug-stop.md"]
    assert "## vmd-until\n\n`vmd-until LOCATION [SECONDS]`" in made["gdb.md"]
    assert "vmd-exit" not in made["gdb.md"]


def test_man_pages_are_named_for_whatis() -> None:
    named = {(name, section): says for _, name, says, _, section in commands_reference.man_pages()}
    assert named["vmdebug-start", 1] == "start a guest and leave it running"
    assert named["vmdebug-kunit", 1].startswith("run KUnit suites")
    assert ("vmdebug.toml", 5) in named


def test_pages_that_are_gone_are_removed(tmp_path: Path) -> None:
    commands_reference.write(tmp_path, {"a.md": "1", "b.md": "2"})
    commands_reference.write(tmp_path, {"b.md": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.md"]


def test_a_comment_belongs_to_the_block_that_follows_it() -> None:
    text = "<!-- file: a -->\n```text\nx\n```\n\n<!-- not run: slow -->\n```console\n$ y\n```\n```\nz\n```\n"
    found = [(block.mark, block.about, block.text) for block in read(text, "page.md")]
    assert found == [("file", "a", "x\n"), ("not run", "slow", "$ y\n"), ("", "", "z\n")]


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("a\n…\nb\n", "a\nb\n"),
        ("a\n…\nb\n", "a\nx\ny\nb\n"),
        ("at …/init/main.c:917\n", "at /root/.cache/x/init/main.c:1001\n"),
        ("build-id 6c00124d7b3647225a6761dd49ff36a89fc0537b\n", f"build-id {'f' * 40}\n"),
        ("[    1.132852]   with\n", "[   12.3]   with\n"),
        ("PID    RELEASE\n12167  6.1.192-vmdebug\n", "PID  RELEASE\n77  6.12.1-vmdebug\n"),
    ],
)
def test_output_may_differ_in_what_varies(expected: str, output: str) -> None:
    assert not differs(expected, output)


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("builtin: stopped\n", "builtin: killed\n"),
        ("a\n", "a\nb\n"),
        ("a\nb\n", "a\n"),
        ("#5  sysrq_handle_crash (key=99)\n", "#6  sysrq_handle_crash (key=99)\n"),
        ("", "a traceback\n"),
    ],
)
def test_other_differences_are_found(expected: str, output: str) -> None:
    assert differs(expected, output)
