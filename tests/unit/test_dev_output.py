from pathlib import Path

import pytest

from vmdebug.sources.kernels import dev_output


def dev(directory: Path, scripts: str, *, generated: bool = False, beside: bool = False) -> Path:
    """Make a kernel's `dev` output; `scripts` is the directory with scripts/gdb."""
    (directory / "vmlinux").touch()
    for each in ("build", "source/include/linux"):
        (directory / "lib/modules/6.6.1" / each).mkdir(parents=True)
    linux = directory / scripts / "scripts/gdb/linux"
    linux.mkdir(parents=True)
    if generated:
        (linux / "constants.py").touch()
    if beside:
        (directory / scripts / "vmlinux-gdb.py").touch()
    return directory


@pytest.mark.parametrize(
    ("scripts", "generated", "why"),
    [
        ("source", False, "{}/source/scripts/gdb lacks the generated linux/constants.py"),
        ("build", False, "{}/build/scripts/gdb lacks the generated linux/constants.py"),
        ("build", True, "there is no vmlinux-gdb.py beside {}/build/scripts/gdb"),
    ],
)
def test_in_no_layout_that_was_met_are_the_scripts_usable(
    tmp_path: Path, scripts: str, generated: bool, why: str
) -> None:
    found = dev_output.read(dev(tmp_path, f"lib/modules/6.6.1/{scripts}", generated=generated))
    assert found.gdb_scripts is None
    assert dev_output.why_unusable(tmp_path) == why.format(tmp_path / "lib/modules/6.6.1")


def test_the_sources_paths_start_one_below_the_source(tmp_path: Path) -> None:
    found = dev_output.read(dev(tmp_path, "lib/modules/6.6.1/build"))
    assert found.vmlinux == tmp_path / "vmlinux"
    assert found.source is not None
    assert (found.source / "../include/linux").is_dir()


def test_scripts_that_are_whole_are_found_wherever_they_are(tmp_path: Path) -> None:
    where = "lib/modules/6.6.1/build"
    found = dev_output.read(dev(tmp_path, where, generated=True, beside=True))
    assert found.gdb_scripts == tmp_path / where
    assert dev_output.why_unusable(tmp_path / where) == ""
    assert dev_output.why_unusable(tmp_path) == f"they are in {tmp_path / where}"


def test_an_empty_output_has_nothing(tmp_path: Path) -> None:
    assert dev_output.read(tmp_path) == dev_output.KernelDev(vmlinux=None, gdb_scripts=None, source=None)
    assert dev_output.why_unusable(tmp_path) == f"there is no scripts/gdb in {tmp_path}"
