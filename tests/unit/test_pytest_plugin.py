"""Options, ini file and marker of the pytest plugin, without a guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmdebug.errors import UsageError
from vmdebug.plugin import fixture_guest, hooks, markers, targets
from vmdebug.plugin.markers import MarkedTest, Marker
from vmdebug.plugin.settings import Named, Settings
from vmdebug.plugin.targets import Target

pytest_plugins = ["pytester"]

HERE = Path("/suite")
ROOT = Settings(guests=(), kernels=(), root=HERE)


def marked(**keywords: object) -> Marker:
    return markers.read([pytest.mark.vmdebug(**keywords).mark])


def said(*words: str) -> tuple[Named, ...]:
    return tuple(Named(each, HERE) for each in words)


def test_a_run_that_uses_none_of_it_imports_none_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_imports():
            heavy = {"vmdebug.session", "vmdebug.vm", "msgspec", "pexpect"}
            assert not heavy & set(sys.modules)
            assert not [name for name in sys.modules if name.startswith("vmdebug.plugin.")]
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*vmdebug: *")


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("kernle='x'", "*no keyword 'kernle'*"),
        ("allow=['panik']", "*no kind of trouble 'panik'*"),
        ("halt='yes'", "*vmdebug(halt=*"),
        ("memory='much'", "*'much' is not an amount of memory*"),
        ("timeout=-1", "*timeout=-1): not a number of seconds*"),
        ("timeout=float('nan')", "*timeout=nan): not a number of seconds*"),
        ("'builtin'", "*takes keywords only*"),
    ],
)
def test_a_marker_that_cannot_be_right_is_named_at_collection(
    pytester: pytest.Pytester, marker: str, told: str
) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.vmdebug({marker})
        def test_it(vm):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *::test_it: *"])
    result.stderr.fnmatch_lines([told])


def test_under_xdist_the_test_itself_fails_by_its_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vmdebug(kernle="x")
        def test_it(vm):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no keyword 'kernle'*"])


def test_a_test_that_was_not_known_to_have_a_guest_is_not_run_on_one_of_several(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        def test_it(request):
            request.getfixturevalue("vm")
        """
    )
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "--vmdebug-kernel=a/bzImage", "--vmdebug-kernel=b/bzImage"
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*would run on a, b, but pytest made only one test of it*", "mark it: @pytest.mark.usefixtures*"]
    )


def test_a_parameters_own_guest_goes_before_that_of_the_matrix() -> None:
    many = Settings(guests=(), kernels=said("/k/one", "/k/two"), root=HERE)
    _, made_for = targets.of(many, MarkedTest(HERE / "test_a.py", Marker())).values()
    asked = MarkedTest(HERE / "test_a.py", Marker(guest="x"))

    found = hooks._target_of(made_for, targets.of(many, asked))

    assert found == Target(Named("x", HERE), Named("/k/two", HERE))


def test_a_dump_needs_a_place(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(vm): pass")

    result = pytester.runpytest_inprocess("--vmdebug-dump", "-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--vmdebug-artifacts DIR*"])


@pytest.mark.parametrize("words", ["soon", "-1", "nan"])
def test_a_timeout_is_a_number_of_seconds(pytester: pytest.Pytester, words: str) -> None:
    result = pytester.runpytest_inprocess(f"--vmdebug-timeout={words}", "-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*'{words}' is not a number of seconds*"])


def test_fixtures_and_marker_are_told(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--fixtures", "--markers", "-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["@pytest.mark.vmdebug(guest=*"])
    told = result.stdout.str().partition("vmdebug(guest=")[2].partition("):")[0]
    assert re.findall(r"(\w+)=", f"guest={told}") == list(Marker.__struct_fields__)


def test_the_closest_marker_goes_before() -> None:
    near = pytest.mark.vmdebug(append="near").mark
    far = pytest.mark.vmdebug(append="far", cpus=2).mark

    assert markers.read([near, far]) == Marker(append="near", cpus=2)


def test_one_kind_may_be_allowed_by_its_name_alone() -> None:
    assert marked(allow="warn") == marked(allow=["warn"]) == Marker(allow=("warn",))


def test_a_near_word_is_offered() -> None:
    with pytest.raises(UsageError) as raised:
        marked(kernle="x")
    assert raised.value.hint == "did you mean 'kernel'?"


def test_without_a_word_there_is_one_target_and_no_id() -> None:
    assert targets.of(ROOT, MarkedTest(HERE / "test_a.py", Marker())) == {"": Target()}


def test_guests_and_kernels_make_a_matrix() -> None:
    many = Settings(guests=said("a", "b"), kernels=said("/k/one", "/k/two"), root=HERE)

    found = targets.of(many, MarkedTest(HERE / "test_a.py", Marker()))

    assert list(found) == ["a-one", "a-two", "b-one", "b-two"]
    assert found["b-one"] == Target(Named("b", HERE), Named("/k/one", HERE))


def test_paths_are_told_apart_by_the_part_that_differs() -> None:
    kernels = said("/src/linux-a/arch/x86/boot/bzImage", "/src/linux-b/arch/x86/boot/bzImage")

    found = targets.of(Settings(guests=(), kernels=kernels, root=HERE), MarkedTest(HERE / "t.py", Marker()))

    assert list(found) == ["linux-a", "linux-b"]


def test_no_target_is_lost_because_its_id_is_that_of_another() -> None:
    many = Settings(guests=said("a", "a-b"), kernels=said("/k/b-c", "/k/c"), root=HERE)

    found = targets.of(many, MarkedTest(HERE / "test_a.py", Marker()))

    assert list(found) == ["a-b-c", "a-c", "a-b-b-c", "a-b-c-2"]
    assert found["a-b-c-2"] == Target(Named("a-b", HERE), Named("/k/c", HERE))

    paths = Settings(guests=(), kernels=said("/k/one", "k/one"), root=HERE)
    assert list(targets.of(paths, MarkedTest(HERE / "test_a.py", Marker()))) == ["k-one", "k-one-2"]


def test_a_guest_that_a_marker_names_twice_is_run_once() -> None:
    marker = Marker(guest=("a", "b", "a"))
    assert list(targets.of(ROOT, MarkedTest(HERE / "test_a.py", marker))) == ["a", "b"]


@pytest.mark.parametrize("option", ["report=term", "diff=HEAD", "file=x.coverage", "source=/src"])
def test_options_of_coverage_need_coverage(pytester: pytest.Pytester, option: str) -> None:
    result = pytester.runpytest_inprocess(f"--vmdebug-cov-{option}", "-p", "no:cacheprovider")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    name = option.partition("=")[0]
    result.stderr.fnmatch_lines([f"*--vmdebug-cov-{name} needs --vmdebug-cov*"])


def test_a_tests_own_guest_goes_before_the_runs_and_starts_at_its_file() -> None:
    run = Settings(guests=said("a", "b"), kernels=(), root=HERE)

    found = targets.of(run, MarkedTest(HERE / "sub" / "test_a.py", Marker(guest="./own")))

    assert found == {"": Target(Named("./own", HERE / "sub"))}


def test_what_a_test_says_is_added_to_what_its_guest_says(tmp_path: Path) -> None:
    tmp_path.joinpath("vmdebug.toml").write_text(
        'default = "base"\n[guest.base]\nsource = "builtin"\nappend = "quiet"\nmemory = "1G"\n'
    )
    run = Settings(guests=(), kernels=(), root=tmp_path, accel="tcg")

    found = targets.options(run, Marker(append="slub_debug", cpus=2), Target(), halted=True)

    assert (found.append, found.memory, found.cpus) == ("quiet slub_debug", 1024, 2)
    assert (found.halt, found.accel, found.table) == (True, "tcg", "base")


def test_only_a_directory_has_to_be_packed_for_clones(tmp_path: Path) -> None:
    (tmp_path / "chroot").mkdir()
    (tmp_path / "disk.img").touch()

    def packed(root: str) -> str:
        found = targets.options(ROOT, Marker(root=root), Target(), halted=False, where=tmp_path)
        return found.root_image

    assert packed("chroot") == "always"
    # `always` is refused for a disk image, which can be cloned as it is.
    assert packed("disk.img") == "auto"
    assert {packed(root) for root in ("host", "debian:bookworm", "docker://alpine")} == {"auto"}


def test_several_guests_are_on_one_segment() -> None:
    def net(marker: Marker) -> tuple[str, ...]:
        return targets.options(ROOT, marker, Target(), halted=False, together=True).net

    assert net(Marker()) == ("segment=test",)
    assert net(Marker(net="user")) == ("user", "segment=test")
    assert net(Marker(net="none")) == ("segment=test",)
    assert net(Marker(forward=":22")) == ("user", "segment=test")
    assert net(Marker(net=("segment=lab,ip=10.1.1.1/24",))) == ("segment=lab,ip=10.1.1.1/24",)
    assert targets.options(ROOT, Marker(), Target(), halted=False).net == ()
    with pytest.raises(UsageError, match=r"sessions=…\): Expected int >= 1"):
        marked(sessions=0)


@pytest.mark.parametrize(
    ("test", "folder"),
    [
        ("test_a.py::test_x", "test_a.py-test_x"),
        ("tests/test_a.py::TestC::test_x[linux-a]", "tests-test_a.py-TestC-test_x-linux-a"),
    ],
)
def test_a_tests_folder_has_its_name(test: str, folder: str) -> None:
    assert fixture_guest.folder_name(test) == folder


def test_a_tests_folder_has_nothing_of_an_earlier_failure(tmp_path: Path) -> None:
    for name in ("kernel-panic.txt", "vmcore", "notes.md"):
        tmp_path.joinpath(name).touch(mode=0o400)

    fixture_guest._empty(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_folders_of_tests_that_differ_in_odd_characters_differ() -> None:
    odd = [
        fixture_guest.folder_name(f"test_a.py::test_x[{each}]")
        for each in ("a b", "a?b", "a" * 200, "a" * 201)
    ]

    assert len(set(odd)) == 4
    assert all("/" not in each and len(each) < 140 for each in odd)


def test_modules_of_a_marker_start_at_the_test_file() -> None:
    made = targets.options(
        ROOT, Marker(modules="m", module="mine.ko", load_modules=False), Target(), halted=False, where=HERE
    )
    assert (made.modules, made.module, made.load_modules) == (
        str(HERE / "m"),
        (str(HERE / "mine.ko"),),
        False,
    )
    made = targets.options(ROOT, Marker(modules="none"), Target(), halted=False, where=HERE)
    assert (made.modules, made.module, made.load_modules) == ("none", (), True)
