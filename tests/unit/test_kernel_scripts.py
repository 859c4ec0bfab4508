import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit import kernelfiles
from vmdebug import cache, guest, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, MismatchError, UsageError, VmdebugError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.process import Completed
from vmdebug.progress import silent
from vmdebug.sources.kernel_scripts import constants, prepare, script_parts
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.kernel_scripts.prepare import Scripts
from vmdebug.sources.kernel_scripts.script_parts import Wanted
from vmdebug.sources.kernels import dev_output

V = kernelfiles.RELEASE
GENERATED = "import gdb\nLX_CONFIG_DEBUG_INFO_REDUCED = 0\nLX_NR_CPUS = 8\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Replaces make, and writes `constants.py` where make does."""
    started: list[Sequence[str]] = []
    real = process.run

    def run(argv: Sequence[str], **options: Any) -> Completed:
        if argv[0] != "make":
            return real(argv, **options)
        started.append(argv)
        words = dict(word.split("=", 1) for word in argv if "=" in word)
        into = Path(words["M"]) if "M" in words else Path(words["O"]) / "scripts/gdb/linux"
        if argv[-1] != "olddefconfig":
            into.mkdir(parents=True, exist_ok=True)
            (into / "constants.py").write_text(GENERATED)
        return Completed(tuple(argv), 0, "", "")

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(process, "find", lambda program, **_: Path("/usr/bin") / program)
    return started


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Sequence[str], **options: object) -> Completed:
        return Completed(tuple(argv), 2, "", "cc1: error: no such option\n")

    monkeypatch.setattr(process, "run", run)


def kernel(directory: Path, **changes: Any) -> Kernel:
    vmlinux = kernelfiles.vmlinux(directory / "vmlinux")
    made = Kernel(
        arch="x86_64",
        image=directory / "bzImage",
        origin="the image bzImage",
        build_id=kernelfiles.ID,
        release=V,
        vmlinux=vmlinux,
    )
    return msgspec.structs.replace(made, **changes)


def scripts(place: Path, *, generated: bool = False, template: bool = False) -> Path:
    linux = place / "scripts/gdb/linux"
    linux.mkdir(parents=True)
    (linux / "utils.py").write_text("# utils\n")
    (linux / "proc.py").write_text("# proc\n")
    (place / "scripts/gdb/vmlinux-gdb.py").write_text("import linux.utils\n")
    if generated:
        (linux / "constants.py").write_text(GENERATED)
    if template:
        (linux / "constants.py.in").write_text("LX_VALUE(NR_CPUS)\n")
        (linux / "Makefile").write_text("always-y += constants.py\n")
    return place


def source(place: Path, version: tuple[str, str, str] = ("6", "1", "0")) -> Path:
    scripts(place, template=True)
    named = zip(("VERSION", "PATCHLEVEL", "SUBLEVEL"), version, strict=True)
    (place / "Makefile").write_text(
        "".join(f"{name} = {value}\n" for name, value in named) + "EXTRAVERSION =\n"
    )
    (place / "init").mkdir()
    (place / "scripts/kconfig").mkdir()
    for each in ("Kconfig", "Kbuild", "init/Kconfig", "scripts/kconfig/merge_config.sh"):
        (place / each).write_text("")
    return place


def prepared(place: Path, *, modules: bool = True, release: str = V) -> Path:
    for each in ("include/config", "include/generated"):
        (place / each).mkdir(parents=True, exist_ok=True)
    (place / "include/config/auto.conf").write_text("")
    (place / "include/config/kernel.release").write_text(f"{release}\n")
    (place / "include/generated/autoconf.h").write_text("")
    (place / "Makefile").touch()
    (place / ".config").write_text("#\nCONFIG_MODULES=y\n" if modules else "#\n")
    return place


def make(of: Kernel, **options: Any) -> Scripts:
    return prepare.make(of, report=silent, deadline=Deadline.after(60), **options)


def filled(of: Kernel, **said: Any) -> LaunchSpec:
    spec = LaunchSpec(name="a", guest=".#a", machine=OwnMachine(), kernel=of, notes=("first",))
    return prepare.with_scripts(spec, GuestOptions(**said), report=silent, deadline=Deadline.after(60))


def usable(made: Scripts) -> bool:
    return not dev_output.why_unusable(made.directory)


def test_what_stands_in_the_build_directory_of_dev_is_put_together(
    tmp_path: Path, commands: list[Sequence[str]]
) -> None:
    of = kernel(tmp_path)
    scripts(tmp_path / f"lib/modules/{V}/build", generated=True)
    found = filled(of).kernel.gdb_scripts
    assert found == tmp_path / "cache/vmdebug/gdb-scripts" / kernelfiles.ID
    assert dev_output.why_unusable(found) == ""
    assert (found / "scripts/gdb/linux/proc.py").read_text() == "# proc\n"
    assert filled(of).notes == ("first",)
    assert commands == []


@pytest.mark.parametrize("place", ["source", "build"])
def test_without_constants_a_note_says_what_makes_them(tmp_path: Path, place: str) -> None:
    scripts(tmp_path / f"lib/modules/{V}/{place}", template=True)
    spec = filled(kernel(tmp_path), vmlinux="/my symbols/vmlinux")
    assert spec.kernel.gdb_scripts is None
    assert spec.notes[1] == (
        f"no kernel scripts in GDB: {tmp_path}/lib/modules/{V}/{place}/scripts/gdb lacks the generated"
        " linux/constants.py; run `vmdebug kernel scripts '.#a' --vmlinux '/my symbols/vmlinux'`"
    )


def test_made_once_they_are_found_at_every_start(tmp_path: Path, commands: list[Sequence[str]]) -> None:
    of = kernel(tmp_path)
    scripts(tmp_path / f"lib/modules/{V}/source", template=True)
    build = prepared(tmp_path / f"lib/modules/{V}/build")
    made = make(of)
    assert usable(made)
    assert (made.release, made.build_id) == (V, kernelfiles.ID)
    assert filled(of).kernel.gdb_scripts == made.directory
    # The source need not exist any longer.
    shutil.rmtree(tmp_path / "lib")
    assert make(of) == made
    ((*words, external, output, goal),) = commands
    assert words == ["make", "-C", str(build)]
    assert external.startswith("M=")
    assert output == f"MO={external.removeprefix('M=')}"
    assert goal == "modules"


def test_a_kernel_without_modules_is_asked_for_the_directory(
    tmp_path: Path, commands: list[Sequence[str]]
) -> None:
    scripts(prepared(tmp_path, modules=False), template=True)
    make(kernel(tmp_path))
    ((*_, external, _output, goal),) = commands
    assert external == f"M={goal}"


def test_a_kernel_of_clang_is_asked_by_clang(tmp_path: Path, commands: list[Sequence[str]]) -> None:
    scripts(prepared(tmp_path), template=True)
    (tmp_path / ".config").write_text("#\nCONFIG_CC_IS_CLANG=y\nCONFIG_MODULES=y\n")
    make(kernel(tmp_path))
    assert "LLVM=1" in commands[0]


def test_of_an_o_tree_and_its_source(tmp_path: Path) -> None:
    linux = source(tmp_path / "linux")
    of = kernel(prepared(tmp_path / "o"))
    (tmp_path / "o/source").symlink_to(linux)
    assert make(of).how == f"{linux}/scripts/gdb, constants.py by the makefiles of {tmp_path}/o"


def test_a_source_is_prepared_elsewhere_with_the_kernels_configuration(
    tmp_path: Path, commands: list[Sequence[str]]
) -> None:
    of = kernel(tmp_path)
    linux = source(tmp_path / "linux")
    fetched = Source(path=linux, config=b"#\n")
    made = make(of, fetch=lambda: fetched)
    assert usable(made)
    assert [argv[-1] for argv in commands] == ["olddefconfig", "scripts_gdb"]
    assert all(argv[:3] == ["make", "-C", str(linux)] for argv in commands)


def test_where_the_tree_fails_its_source_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts(prepared(tmp_path), template=True)
    of = kernel(tmp_path)
    failing(monkeypatch)
    with pytest.raises(BuildError, match="make ended with status 2") as caught:
        make(of)
    assert caught.value.detail.endswith("cc1: error: no such option")

    def fetch() -> Source:
        raise HostError("asked")

    with pytest.raises(HostError, match="asked"):
        make(of, fetch=fetch)


def test_a_failure_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts(tmp_path, generated=True)
    of = kernel(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(HostError, match="not enough space"):
        make(of)
    left = [path.name for path in cache.directory("gdb-scripts").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_what_somebody_has_deleted_from_is_made_anew(tmp_path: Path) -> None:
    scripts(tmp_path, generated=True)
    of = kernel(tmp_path)
    made = make(of)
    (made.directory / "complete.json").unlink()
    (made.directory / "vmlinux-gdb.py").unlink()
    assert make(of) == made
    assert usable(made)
    assert guest.decode((made.directory / "complete.json").read_bytes(), Scripts) == made


def test_a_kernel_without_build_id_is_known_by_its_file(tmp_path: Path) -> None:
    ours, other = (scripts(tmp_path / name, generated=True) for name in ("ours", "other"))
    made = []
    for each in (ours, other):
        of = kernel(each)
        kernelfiles.vmlinux(each / "vmlinux", "")
        made.append(make(of).directory.name)
    assert all(name.startswith("file-") for name in made)
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("release", "version", "same"),
    [
        ("6.1.0-test", ("6", "1", "0"), True),
        ("6.1.0", ("6", "1", "0"), True),
        ("6.1.0+", ("6", "1", "0"), True),
        ("6.1.10-test", ("6", "1", "1"), False),
        ("6.1.0.1", ("6", "1", "0"), False),
        ("6.2.0-test", ("6", "1", "0"), False),
        ("6.1.0-56-amd64", ("6", "1", "192"), True),
        ("6.8.0-45-generic", ("6", "1", "12"), False),
        ("6.1.0", ("6", "1", "192"), False),
        ("", ("6", "1", "0"), True),
    ],
)
def test_a_source_is_the_kernels_by_its_version(
    tmp_path: Path, release: str, version: tuple[str, str, str], same: bool
) -> None:
    linux = source(tmp_path / "linux", version)
    of = kernel(tmp_path, release=release)
    wanted = Wanted(of, tmp_path / "vmlinux")
    if same:
        script_parts.check_same_build(linux, wanted)
        return
    with pytest.raises(MismatchError, match=rf"belong to Linux {'.'.join(version)}, and the image") as caught:
        script_parts.check_same_build(linux, wanted)
    assert kernelfiles.ID in caught.value.detail


def test_an_o_tree_whose_source_moved_on_is_a_note_at_start(tmp_path: Path) -> None:
    linux = source(tmp_path / "linux", ("6", "2", "0"))
    of = kernel(prepared(tmp_path / "o"))
    (tmp_path / "o/source").symlink_to(linux)
    with pytest.raises(MismatchError, match=r"belong to Linux 6\.2\.0"):
        make(of)
    assert "belong to Linux 6.2.0" in filled(of).notes[1]


def test_a_tree_of_another_build_is_refused(tmp_path: Path) -> None:
    other = prepared(scripts(tmp_path / "other", generated=True))
    kernelfiles.vmlinux(other / "vmlinux", kernelfiles.OTHER_ID)
    with pytest.raises(MismatchError, match=f"{kernelfiles.OTHER_ID} instead of {kernelfiles.ID}"):
        make(kernel(tmp_path / "ours"), source=other)


def test_modules_of_another_release_beside_the_kernel_are_passed_over(tmp_path: Path) -> None:
    scripts(tmp_path / "lib/modules/6.5.0/build", generated=True)
    scripts(tmp_path / f"lib/modules/{V}/build", generated=True)
    assert f"modules/{V}/build" in make(kernel(tmp_path)).how


@pytest.mark.parametrize("said_by", ["config", "constants"])
def test_reduced_debugging_information_is_refused(tmp_path: Path, said_by: str) -> None:
    scripts(tmp_path, generated=True)
    if said_by == "config":
        (tmp_path / ".config").write_text("#\nCONFIG_DEBUG_INFO_REDUCED=y\n")
    else:
        (tmp_path / "scripts/gdb/linux/constants.py").write_text("LX_CONFIG_DEBUG_INFO_REDUCED = 1\n")
    of = kernel(tmp_path)
    with pytest.raises(UsageError, match="CONFIG_DEBUG_INFO_REDUCED=y") as caught:
        make(of)
    assert caught.value.hint == "turn DEBUG_INFO_REDUCED off and rebuild the kernel"
    assert "CONFIG_DEBUG_INFO_REDUCED=y" in filled(of).notes[1]


def test_without_symbols_or_types_there_is_no_use_for_them(tmp_path: Path) -> None:
    of = kernel(tmp_path)
    with pytest.raises(UsageError, match="the GDB scripts of the image bzImage need its symbols"):
        make(msgspec.structs.replace(of, vmlinux=None))
    kernelfiles.vmlinux(tmp_path / "vmlinux", dwarf=False)
    with pytest.raises(UsageError, match="has no debugging information"):
        make(of)


def test_where_there_is_nothing_the_user_can_say_where(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="no GDB scripts of the image bzImage: there is no scripts/gdb"
    ) as caught:
        make(kernel(tmp_path))
    assert "--source" in caught.value.hint


def test_a_source_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"constants\.py depends on the configuration"):
        make(kernel(tmp_path / "k"), source=source(tmp_path / "linux"))


def test_the_configuration_inside_of_the_kernel(tmp_path: Path) -> None:
    of = kernel(tmp_path)
    assert of.vmlinux is not None
    with of.vmlinux.open("ab") as stream:
        stream.write(b"IKCFG_ST" + gzip.compress(b"#\nCONFIG_X=y\n") + b"IKCFG_ED")
    assert script_parts.config(Wanted(of, of.vmlinux), script_parts.Parts()) == b"#\nCONFIG_X=y\n"


def test_usable_ones_are_left_alone(tmp_path: Path) -> None:
    of = kernel(tmp_path, gdb_scripts=tmp_path)
    assert make(of).directory == tmp_path
    assert filled(of).kernel == of


def test_make_that_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda argv, **_: Completed(tuple(argv), 0, "", ""))
    scripts(prepared(tmp_path), template=True)
    with pytest.raises(VmdebugError, match=r"generated no constants\.py"):
        constants.by_module_build(
            tmp_path / "scripts/gdb/linux/constants.py.in",
            tmp_path,
            what="",
            report=silent,
            deadline=Deadline.after(9),
        )
