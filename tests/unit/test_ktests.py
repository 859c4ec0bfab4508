"""kselftests and KUnit: command lines, arguments, and what is read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import cli, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Kernel
from vmdebug.ktests import kselftest, kselftest_output, kselftest_place, selftests, suite_modules
from vmdebug.ktests.kselftest_place import Place
from vmdebug.ktests.selftests import Collection
from vmdebug.progress import silent
from vmdebug.sources import kbuild

KERNEL = Kernel(image=Path("/b/bzImage"), origin="the tree /b", arch="x86_64", vmlinux=Path("/b/vmlinux"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel's source with the collections `timers` and `net/forwarding`."""
    top = tmp_path / "linux/tools/testing/selftests"
    for name in ("timers", "net/forwarding"):
        (top / name).mkdir(parents=True)
        (top / name / "Makefile").touch()
    (top / "lib").mkdir()
    (top / "Makefile").write_text("TARGETS += timers\nTARGETS += net/forwarding\nTARGETS += lib\n")
    (top / "lib.mk").touch()
    return tmp_path / "linux"


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    directory = tmp_path / "timers"
    (directory / "timers").mkdir(parents=True)
    (directory / "timers/run.sh").write_text("#!/usr/bin/env -S bash -e\n")
    (directory / "timers/nano sleep").write_bytes(b"\x7fELF")
    (directory / "timers/nano sleep").chmod(0o755)
    return Collection("timers", directory, ("run.sh", "nano sleep", "absent"), timeout=45)


def test_the_commands_of_make() -> None:
    jobs = f"-j{kbuild.jobs()}"
    assert selftests.headers_argv(Path("/s"), Path("/o")) == ("make", "-C", "/s", "O=/o", jobs, "headers")
    assert selftests.install_argv(Path("/s"), Path("/o"), "net/forwarding", Path("/i"), KERNEL) == (
        *("make", "-C", "/s/tools/testing/selftests", "O=/o", jobs, "TARGETS=net/forwarding"),
        *("SKIP_TARGETS=", "FORCE_TARGETS=1", "KDIR=/b", "KSFT_INSTALL_PATH=/i", "install"),
    )


def test_collections_of_a_source(source: Path, tmp_path: Path) -> None:
    assert selftests.known(source) == ("net/forwarding", "timers")
    assert selftests.check_source(source) == source
    for name in ("timer", "../selftests/timers", "/timers", "lib", ""):
        with pytest.raises(UsageError, match="there is no kselftest collection"):
            selftests.check_names(source, ["timers", name])
    with pytest.raises(UsageError) as raised:
        selftests.check_names(source, ["timer"])
    assert raised.value.hint == "did you mean 'timers'?"
    with pytest.raises(UsageError, match=r"has no kselftests: there is no tools/testing/selftests/lib\.mk"):
        selftests.check_source(tmp_path)
    with pytest.raises(
        UsageError, match="the source of the guest's kernel is unknown: the tree /b"
    ) as raised:
        selftests.source_of(KERNEL)
    assert raised.value.hint == "give the kernel's source: --source TREE"


def test_a_failed_make_names_the_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (source / "Makefile").write_text("headers:\n\t@:\n")
    (source / selftests.WHERE / "Makefile").write_text("install:\n\tcc timers/absent.c\n")
    (source / "tools/testing/selftests/timers/absent.c").write_text('#include "absent.h"\n')
    monkeypatch.setattr(selftests, "_check_machine", lambda _kernel: None)
    with pytest.raises(BuildError, match="the collection timers could not be built") as raised:
        selftests.build(source, ["timers"], KERNEL, report=silent, deadline=Deadline.after(60))
    assert "fatal error: absent.h: No such file or directory" in raised.value.hint


def test_a_guest_of_another_architecture_is_refused(source: Path) -> None:
    other = Kernel(image=Path("/b/Image"), origin="the tree /b", arch="m68k")
    with pytest.raises(HostError, match="makes programs for x86_64, and the guest is m68k"):
        selftests.build(source, ["timers"], other, report=silent, deadline=Deadline.after(60))


def test_words_name_collections_and_tests(collection: Collection) -> None:
    assert kselftest.parse(["timers:a", "net/x/", "timers:b"]) == {"timers": ["a", "b"], "net/x": []}
    assert kselftest.parse(["timers:a", "timers"]) == {"timers": []}
    for word in (":a", "timers:", ""):
        with pytest.raises(UsageError, match="is no kselftest"):
            kselftest.parse([word])
    (asked,) = kselftest.select([collection], {"timers": []}, test_timeout=9)
    assert (asked.tests, asked.timeout) == (collection.tests, 9)
    (asked,) = kselftest.select([collection], {"timers": ["run.sh"]})
    assert (asked.tests, asked.timeout) == (("run.sh",), 45)
    with pytest.raises(UsageError, match="the collection timers has no test 'run'"):
        kselftest.select([collection], {"timers": ["run"]})


def test_the_commands_in_the_guest(collection: Collection) -> None:
    place = Place("/var/tmp/k", runner=True, missing=frozenset())
    assert kselftest.runner_line(collection, "nano sleep", place, 9.5) == (
        "echo timeout=9.5 >>/var/tmp/k/timers/timers/settings; cd /var/tmp/k/timers &&"
        " ./run_kselftest.sh -t 'timers:nano sleep' 2>&1 | cat"
    )
    assert kselftest.direct_line(collection, "nano sleep", place) == (
        "cd /var/tmp/k/timers/timers && exec './nano sleep' 2>&1"
    )
    assert kselftest.direct_line(collection, "run.sh", place) == (
        "cd /var/tmp/k/timers/timers && exec /usr/bin/env -S bash -e ./run.sh 2>&1"
    )
    assert kselftest_place.needed_path(("/usr/bin/env", "-S", "bash", "-e")) == "bash"
    assert kselftest_place.needed_path(("/bin/sh", "-e")) == "/bin/sh"
    assert collection.interpreter("nano sleep") == collection.interpreter("absent") == ()


def test_exit_statuses() -> None:
    said = ["TAP version 13", "1..1", "# own.c:7:main:wrong", "not ok 1 it", "# Totals: pass:0 fail:1"]
    failed = kselftest_output.direct("a", said, 1, 45)
    assert (failed.status, failed.directive, failed.points[0].place) == ("failed", "exit=1", "own.c:7")
    assert failed.diagnostics == ("Totals: pass:0 fail:1",)
    late = kselftest_output.direct("a", ["begun"], 124, 45)
    assert (late.directive, late.diagnostics) == ("TIMEOUT 45 seconds", ("begun",))
    skipped = kselftest_output.direct("a", ["1..0 # SKIP no device"], 4, 45)
    assert (skipped.status, skipped.reason) == ("skipped", "no device")
    assert kselftest_output.direct("a", ["needs root"], 4, 45).reason == "needs root"
    assert kselftest_output.direct("a", [], 2, 45).status == "failed"
    assert kselftest_output.direct("a", [], 2, 45, xfails=True).status == "xfailed"
    short = kselftest_output.direct("a", ["1..3", "ok 1 first"], 0, 45)
    assert short.ok
    dead = kselftest_output.direct("a", ["1..3", "ok 1 first"], None, 45)
    assert [point.status for point in dead.points] == ["passed", "missing"]


def test_the_output_of_the_kernels_runner() -> None:
    lines = [
        "TAP version 13",
        "1..1",
        "# selftests: timers: a",
        "# TAP version 13",
        "# 1..1",
        "# # own.c:7: x",
    ]
    point = kselftest_output.from_runner(
        "a", [*lines, "# not ok 1 it", "not ok 1 selftests: timers: a # exit=1"], 45
    )
    assert (point.name, point.status, point.directive) == ("a", "failed", "exit=1")
    assert (point.points[0].name, point.points[0].place) == ("it", "own.c:7")
    late = kselftest_output.from_runner("a", lines, 45)
    assert (late.status, late.directive) == ("failed", "TIMEOUT 45 seconds")
    skipped = kselftest_output.from_runner(
        "a", [*lines[:3], "# needs root", "ok 1 selftests: timers: a # SKIP"], 45
    )
    assert (skipped.status, skipped.reason) == ("skipped", "needs root")


def test_suites_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "own-test.c").write_text(
        """
        struct suite { char name[256]; void *cases; };
        static struct suite first = { "first" }, second = { "second-suite" };
        #define IN(name) __attribute__((used, section(name)))
        static struct suite *suites[] IN(".kunit_test_suites") = { &first, &second };
        static const char info[] IN(".modinfo") = "license=GPL\\0depends=base_kit\\0";
        """
    )
    (tmp_path / "base.c").write_text('const char info[] = "depends=";')
    for name, to in (("own-test", "own-test.ko"), ("base", "base-kit.ko")):
        argv = ["gcc", "-c", "-x", "c", str(tmp_path / f"{name}.c"), "-o", str(tmp_path / to)]
        process.run(argv, deadline=Deadline.after(60))
    module = tmp_path / "own-test.ko"
    (found,) = suite_modules.every(tmp_path)
    assert (found.name, found.file, found.suites) == ("own_test", module, ("first", "second-suite"))
    assert suite_modules.needed(module, tmp_path) == (tmp_path / "base-kit.ko",)
    assert suite_modules.needed(module, None) == ()
    assert suite_modules.look(tmp_path / "base-kit.ko") is None
    assert [*suite_modules.every(None)] == []


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in {
        ("kselftest", "base"): "no kselftest to run",
        ("kselftest", "base", "timers", "--allow", "wran"): "there is no kind of trouble 'wran'",
        ("kunit", "base", "--boot", "--list"): "--boot and --list exclude each other",
        ("kunit", "base", "--allow", "x"): "there is no kind of trouble 'x'",
        ("kunit", "no-such-vm"): "no-such-vm",
    }.items():
        assert cli.status_of([*words]) == 2
        assert said in capsys.readouterr().err
