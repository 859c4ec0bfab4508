import shlex
import shutil
from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, DeadlineError, HostError
from vmdebug.progress import Step, silent
from vmdebug.sources import nix

NIX = ["nix", "--extra-experimental-features", "nix-command flakes", "--log-format", "internal-json"]
SLEEP = shutil.which("sleep")
KERNEL = "md3kg3wf6iikbr1bwc3g12yxynhgvz2i-linux-6.1.192"


def test_a_build_leaves_no_link_and_tells_its_outputs_in_json() -> None:
    assert nix.build([".#vm", ".#kernel.dev"], nix_args=["--impure"]) == [
        *NIX,
        *("build", "--no-link", "--json", ".#vm", ".#kernel.dev", "--impure"),
    ]


def test_an_evaluation_prints_json() -> None:
    assert nix.evaluate(".#a.outPath") == [*NIX, "eval", "--json", ".#a.outPath"]
    assert nix.evaluate(".#a", apply="builtins.attrNames", nix_args=["--override-input", "k", "path:/k"]) == [
        *(*NIX, "eval", "--json", ".#a", "--apply", "builtins.attrNames"),
        *("--override-input", "k", "path:/k"),
    ]


def test_what_is_known_of_a_store_path_is_asked_of_nix_store() -> None:
    assert nix.deriver(Path("/nix/store/x")) == [
        *("nix-store", "--log-format", "internal-json", "--query", "--deriver", "/nix/store/x")
    ]
    assert nix.realise("/nix/store/x.drv", "dev") == [
        *("nix-store", "--log-format", "internal-json", "--realise", "/nix/store/x.drv!dev")
    ]


# Output of nix 2.8.0, with shorter paths.
BUILDING = """\
@nix {"action":"start","id":1,"level":4,"text":"copying '/home/me/flake'","type":0}
@nix {"action":"stop","id":1}
@nix {"action":"start","id":2,"level":0,"text":"","type":102}
@nix {"action":"start","id":3,"level":0,"text":"","type":104}
@nix {"action":"start","id":4,"level":0,"text":"","type":103}
@nix {"action":"result","fields":[0,2,0,0],"id":3,"type":105}
@nix {"action":"result","fields":[0,1,0,0],"id":4,"type":105}
@nix {"action":"result","fields":[101,0],"id":2,"type":106}
@nix {"action":"start","id":5,"level":6,"text":"querying info about missing paths","type":0}
@nix {"action":"stop","id":5}
@nix {"action":"start","fields":["/s/aa-glibc-2.35","https://c","/s"],"id":6,"level":3,"text":"","type":108}
@nix {"action":"result","fields":[1,1,0,0],"id":4,"type":105}
@nix {"action":"start","fields":["/s/bb-linux-6.1.drv","",1,1],"id":7,"level":3,"text":"","type":105}
@nix {"action":"result","fields":["buildPhase"],"id":7,"type":104}
@nix {"action":"result","fields":["\\u001b[1mCC\\u001b[0m init/main.o"],"id":7,"type":101}
@nix {"action":"result","fields":[1,2,0,0],"id":3,"type":105}
@nix {"action":"stop","id":7}
""".splitlines()


def test_progress_counts_builds_and_fetches_and_says_what_is_at_hand() -> None:
    steps: list[Step] = []
    progress = nix.Progress("building .#a", steps.append)
    for line in BUILDING:
        progress.line(line)
    assert [(step.done, step.total, step.note) for step in steps] == [
        (None, None, "copying '/home/me/flake'"),
        (0, 2, "copying '/home/me/flake'"),
        (0, 3, "copying '/home/me/flake'"),
        (0, 3, "fetching glibc-2.35"),
        (1, 3, "fetching glibc-2.35"),
        (1, 3, "linux-6.1"),
        (1, 3, "linux-6.1: buildPhase"),
        (1, 3, "linux-6.1: CC init/main.o"),
        (2, 3, "linux-6.1: CC init/main.o"),
    ]
    assert {step.what for step in steps} == {"building .#a"}


@pytest.mark.parametrize("line", ["", "[]", "@nix", "@nix {", "@nix []", '@nix {"action":1}', "error: no"])
def test_a_line_that_is_no_event_is_passed_over(line: str) -> None:
    assert nix.event(line) is None
    nix.Progress("x", silent).line(line)


FAILED = """\
@nix {"action":"msg","level":3,"msg":"these derivations will be built"}
@nix {"action":"start","fields":["/s/bb-linux-6.1.drv","",1,1],"id":7,"level":3,"text":"","type":105}
@nix {"action":"start","fields":["/s/cc-other.drv","",1,1],"id":8,"level":3,"text":"","type":105}
@nix {"action":"result","fields":["CC init/main.o"],"id":7,"type":101}
@nix {"action":"result","fields":["fine"],"id":8,"type":101}
@nix {"action":"result","fields":["init/main.c:1: error: no"],"id":7,"type":101}
@nix {"action":"msg","level":1,"msg":"\\u001b[35;1mwarning:\\u001b[0m Git tree '/x' is dirty"}
@nix {"action":"msg","level":0,"msg":"\\u001b[31;1merror:\\u001b[0m builder for '/s/bb-linux-6.1.drv' failed"}
"""


def test_nixs_words_are_its_messages_and_the_end_of_the_log_of_what_failed() -> None:
    assert nix.words(FAILED).splitlines() == [
        "warning: Git tree '/x' is dirty",
        "error: builder for '/s/bb-linux-6.1.drv' failed",
        "the end of the log of linux-6.1:",
        "  CC init/main.o",
        "  init/main.c:1: error: no",
    ]


def test_words_outside_of_the_protocol_are_kept() -> None:
    assert nix.words("error: unrecognised flag '--x'\n") == "error: unrecognised flag '--x'"


def test_one_line_of_an_error_is_nixs_own() -> None:
    error = BuildError("building", detail="nix build\nwarning: dirty\nerror: no such option\n  at x")
    assert nix.reason(error) == "no such option"
    later = "nix build\nerror:\n  … while calling 'head'\n       error: attribute 'x' missing"
    assert nix.reason(BuildError("building", detail=later)) == "attribute 'x' missing"
    assert nix.reason(BuildError("building", detail="nix build\nkilled")) == "killed"


def test_a_failure_without_words_has_its_status(fake: Path) -> None:
    put(fake, "nix", "exit 7")
    with pytest.raises(BuildError, match="building it: `nix` ended with status 7"):
        ask(nix.build(["x"]))


def test_a_file_lies_in_a_store_path_of_any_store() -> None:
    assert nix.store_path(Path(f"/nix/store/{KERNEL}/bzImage")) == Path(f"/nix/store/{KERNEL}")
    assert nix.store_path(Path(f"/tmp/my/store/{KERNEL}")) == Path(f"/tmp/my/store/{KERNEL}")
    assert nix.store_path(Path("/src/linux/arch/x86/boot/bzImage")) is None
    assert nix.name(f"/nix/store/{KERNEL}.drv") == "linux-6.1.192"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH; a test puts its own `nix` there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def ask(argv: list[str], seconds: float = 20) -> list[nix.Built]:
    return nix.ask(argv, list[nix.Built], what="building it", report=silent, deadline=Deadline.after(seconds))


def test_the_answer_is_decoded(fake: Path) -> None:
    put(fake, "nix", """echo '[{"drvPath":"/s/x.drv","outputs":{"out":"/s/x"},"startTime":1}]'""")
    assert ask(nix.build(["x"])) == [nix.Built(outputs={"out": "/s/x"}, drv="/s/x.drv")]


@pytest.mark.parametrize("answer", ["", "null", "[{}]", '[{"outputs":["out"]}]'])
def test_an_answer_of_another_form_is_shown(fake: Path, answer: str) -> None:
    put(fake, "nix", f"echo '{answer}'")
    with pytest.raises(BuildError, match="that vmdebug does not understand") as caught:
        ask(nix.build(["x"]))
    assert caught.value.detail.endswith(f" x\n{answer}\n")


def test_a_failure_shows_the_command_and_nixs_own_words(fake: Path) -> None:
    put(fake, "nix", f"printf '%s' {shlex.quote(FAILED)} >&2; exit 1")
    with pytest.raises(BuildError, match=r"building it: builder for '.*\.drv' failed") as caught:
        ask(nix.build(["x"]))
    assert caught.value.hint == "read the whole log: nix-store --read-log /s/bb-linux-6.1.drv"
    assert caught.value.detail.startswith("nix --extra-experimental-features 'nix-command flakes' ")
    assert "error: builder for '/s/bb-linux-6.1.drv' failed" in caught.value.detail
    assert "@nix" not in caught.value.detail


def test_without_nix_the_package_is_named(fake: Path) -> None:
    with pytest.raises(HostError, match="nix is not on PATH") as caught:
        ask(nix.build(["x"]))
    assert "nix-bin" in caught.value.hint


def test_the_deadline_ends_nix(fake: Path) -> None:
    put(fake, "nix", f"exec {SLEEP} 600")
    with pytest.raises(DeadlineError, match="for `nix` to end"):
        ask(nix.build(["x"]), seconds=0.2)
