"""Source lines in a splat, from an ELF file with inlined functions, and from a module."""

from __future__ import annotations

import gzip
import itertools
import re
from pathlib import Path

import msgspec
import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger.decode import decode
from vmdebug.errors import BuildError, DeadlineError
from vmdebug.guest import Kernel

MAIN = """int start_kernel(void)
{
        return 0;
}
"""
INLINED = """void sink(int);

static inline __attribute__((always_inline)) void inner(int x)
{
        sink(x);
}

__attribute__((noinline)) void outer(int x)
{
        sink(1);
        inner(x);
        sink(3);
}

__attribute__((noinline)) void sink(int x)
{
        __asm__ volatile("" : : "r"(x));
}
"""
TWIN = "static __attribute__((used,noinline)) int twin(int x)\n{\n%s        return x;\n}\n"
ENTRY = """extern int start_kernel(void);
extern void outer(int);
void _start(void)
{
        start_kernel();
        outer(2);
}
"""
FILES = {
    "init/main.c": MAIN,
    "lib/inlined.c": INLINED,
    "a/twin.c": TWIN % "",
    "b/twin.c": TWIN % "        x *= 7;\n        x ^= 5;\n        x *= 11;\n        x -= 1;\n",
    "arch/entry.c": ENTRY,
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """A vmlinux, and a compressed module, built by gcc in a tree."""
    tree = tmp_path_factory.mktemp("tree")
    build = tmp_path_factory.mktemp("build")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
    gcc = ("-g", "-O2", "-fno-pie", "-fno-optimize-sibling-calls")
    run("gcc", *gcc, "-nostdlib", "-no-pie", "-o", build / "vmlinux", *(tree / name for name in FILES))
    run("gcc", *gcc, "-c", "-o", build / "my-mod.o", tree / "lib/inlined.c")
    modules = build / "modules/kernel"
    modules.mkdir(parents=True)
    run("ld", "-r", "--build-id=sha1", "-o", modules / "built.ko", build / "my-mod.o")
    (modules / "my-mod.ko.gz").write_bytes(gzip.compress((build / "my-mod.o").read_bytes()))
    return Kernel(
        arch="x86_64", image=build, origin="a test", vmlinux=build / "vmlinux", modules=build / "modules"
    )


def run(program: str, *words: str | Path) -> str:
    return process.run([process.find(program, package="gcc"), *words], deadline=soon()).stdout


def soon() -> Deadline:
    return Deadline.after(60)


def calls(kernel: Kernel, function: str) -> list[int]:
    """Return the offsets of the return addresses in a function."""
    code = run("objdump", "-d", f"--disassemble={function}", "--no-show-raw-insn", vmlinux(kernel))
    rows = re.findall(r"^ +([0-9a-f]+):\t(\S+)", code, re.MULTILINE)
    first = int(rows[0][0], 16)
    called = (after for (_, word), (after, _) in itertools.pairwise(rows) if word.startswith("call"))
    return [int(each, 16) - first for each in called]


def vmlinux(kernel: Kernel) -> Path:
    assert kernel.vmlinux is not None
    return kernel.vmlinux


def test_an_address_in_a_trace_is_that_of_the_call_and_names_what_is_inlined(kernel: Kernel) -> None:
    first, second, third = (f"[    1.0]  outer+{offset:#x}/0x40" for offset in calls(kernel, "outer"))
    assert decode(f"{first}\n{second}\n{third}\n", kernel, soon()) == (
        f"{first} (lib/inlined.c:10)\n"
        f"{second} (lib/inlined.c:5 in inner, lib/inlined.c:11)\n"
        f"{third} (lib/inlined.c:12)\n"
    )


@pytest.mark.parametrize(
    "before",
    [
        "RIP: 0010:",
        "pc : ",
        "WARNING: CPU: 0 PID: 1 at lib/inlined.c:10 ",
        "WARNING: CPU: 0 PID: 1 at ",
        "WARNING: lib/inlined.c:10 at ",
        "> [    1.0] RIP: 0010:",
    ],
)
def test_an_address_at_which_the_cpu_stood_is_taken_as_it_is(kernel: Kernel, before: str) -> None:
    after_first = calls(kernel, "outer")[0]
    said = decode(f"{before}outer+{after_first:#x}/0x40", kernel, soon())
    assert not said.endswith("(lib/inlined.c:10)")
    assert "lib/inlined.c:" in said.removeprefix(before)


@pytest.mark.parametrize(
    "before",
    [
        "[    1.0]  ",
        "[    1.0][    T1]  ? ",
        "> > [    1.0]  ",
        ">>  ",
        "|  ",
        "Nov 29 12:00:00 host kernel:  ",
        "2026-11-29T12:00:00+0000 host kernel:  ",
        "2026-11-29T12:00:00.1234567Z [    1.0]  ",
        "[Nov29 12:00]  ",
        "[  +0.000004]  ? ",
        "kern  :warn  : [    1.0]  ",
        "6,567,1000000,-;  ",
        "4,567,1000000,c,caller=T1; ? ",
        "<4>[    1.0]  ",
        "\x1b[31m ",
    ],
)
def test_whatever_program_wrote_the_log_an_address_in_a_trace_is_that_of_the_call(
    kernel: Kernel, before: str
) -> None:
    line = f"{before}outer+{calls(kernel, 'outer')[0]:#x}/0x40"
    for end in ("\n", "\r\n"):
        assert decode(f"{line}{end}", kernel, soon()) == f"{line} (lib/inlined.c:10){end}"


@pytest.mark.parametrize("decoded", [" lib/inlined.c:10", " (lib/inlined.c:10)", " (a/b.rs:10 in x, c.rs:2)"])
def test_what_another_program_has_decoded_stays_as_it_is(kernel: Kernel, decoded: str) -> None:
    line = f" outer+{calls(kernel, 'outer')[0]:#x}/0x40{decoded}\n"
    assert decode(line, kernel, soon()) == line


def test_the_names_of_rust_are_demangled(kernel: Kernel) -> None:
    name = "_RNvNtCs3hMM4v2rJ1k_6kernel5print11call_printk"
    legacy = "_ZN4core9panicking5panic17h0123456789abcdefE"
    said = decode(f" {name}+0x12/0x34\n {legacy}+0x0/0x1\n", kernel, soon())
    assert said.startswith(" kernel")
    assert "::print::call_printk+0x12/0x34\n core::panicking::panic" in said


def test_a_module_of_another_build_is_not_decoded_but_named(kernel: Kernel) -> None:
    line = f" outer+0x0/0x40 [built {'12' * 20}]\n"
    notes: list[str] = []
    assert decode(line * 2, kernel, soon(), tell=notes.append) == line * 2
    (note,) = notes
    assert re.search(
        rf"built\.ko is of another build: its build-id is [0-9a-f]{{40}}, in the text {'12' * 20}", note
    )
    assert "(lib/inlined.c:9)" in decode(line.replace("12" * 20, build_id(kernel)), kernel, soon())


def build_id(kernel: Kernel) -> str:
    assert kernel.modules is not None
    notes = run("readelf", "-n", kernel.modules / "kernel/built.ko")
    (found,) = re.findall(r"Build ID: ([0-9a-f]+)", notes)
    return str(found)


def test_the_instructions_of_code_follow_it(kernel: Kernel) -> None:
    offset = calls(kernel, "outer")[0] - 5
    (row,) = re.findall(r"^([0-9a-f]+) T outer$", run("nm", vmlinux(kernel)), re.MULTILINE)
    start = int(row, 16)
    data = bytes_of(kernel, start, offset + 5)
    code = " ".join(f"<{each:02x}>" if at == offset else f"{each:02x}" for at, each in enumerate(data))
    lines = decode(f"RIP: 0010:outer+{offset:#x}/0x40\nCode: {code}\nRSP: 1\n", kernel, soon()).splitlines()
    assert lines[0].endswith(" (lib/inlined.c:10)")
    assert re.fullmatch(rf"--> outer\+{offset:#x} +(?:[0-9a-f]+ )+ +call sink\+0x0", lines[-2])
    assert lines[-1] == "RSP: 1"


def bytes_of(kernel: Kernel, address: int, size: int) -> bytes:
    row = re.search(
        r" \.text +\w+ +([0-9a-f]+)  [0-9a-f]+  ([0-9a-f]+)", run("objdump", "-h", vmlinux(kernel))
    )
    assert row is not None
    at = address - int(row[1], 16) + int(row[2], 16)
    return vmlinux(kernel).read_bytes()[at : at + size]


def test_of_several_functions_of_a_name_the_one_of_that_size(kernel: Kernel) -> None:
    table = run("nm", "-n", vmlinux(kernel))
    rows = [(int(row.split()[0], 16), row.split()[2]) for row in table.splitlines()]
    sizes = [after[0] - row[0] for row, after in itertools.pairwise(rows) if row[1] == "twin"]
    assert len(set(sizes)) == len(sizes) == 2
    said = [decode(f" twin+0x0/{size:#x}", kernel, soon()) for size in sizes]
    assert sorted(re.findall(r"\((./twin)\.c:\d\)", " ".join(said))) == ["a/twin", "b/twin"]


@pytest.mark.parametrize("suffix", ["", " 0123456789abcdef0123"])
def test_a_module_is_found_by_its_name(kernel: Kernel, suffix: str) -> None:
    line = f" ? outer+0x0/0x40 [my_mod{suffix}]"
    assert decode(line, kernel, soon()) == f"{line} (lib/inlined.c:9)"


@pytest.mark.parametrize("ending", [".ko", ".ko.debug"])
def test_a_stripped_module_has_its_lines_in_the_debug_package(
    kernel: Kernel, tmp_path: Path, ending: str
) -> None:
    """Debian's has whole modules, Fedora's files with symbols only."""
    whole = vmlinux(kernel).parent / "my-mod.o"
    (tmp_path / "modules").mkdir()
    (tmp_path / "debug").mkdir()
    run("objcopy", "--strip-debug", whole, tmp_path / "modules/my-mod.ko")
    only = ("--only-keep-debug",) if ending == ".ko.debug" else ()
    run("objcopy", *only, whole, tmp_path / f"debug/my-mod{ending}")
    line = " ? outer+0x0/0x40 [my_mod]"
    stripped = msgspec.structs.replace(kernel, modules=tmp_path / "modules")
    assert decode(line, stripped, soon()) == line
    packaged = msgspec.structs.replace(stripped, module_symbols=(tmp_path / "debug",))
    assert decode(line, packaged, soon()) == f"{line} (lib/inlined.c:9)"
    alone = msgspec.structs.replace(stripped, module_symbols=(tmp_path / f"debug/my-mod{ending}",))
    assert decode(line, alone, soon()) == f"{line} (lib/inlined.c:9)"


@pytest.mark.parametrize("said", ["", "\nKernel Offset: 0x2000000 from 0xffffffff81000000\n"])
def test_a_bare_address_is_moved_back_by_what_kaslr_moved_it(kernel: Kernel, said: str) -> None:
    table = run("nm", vmlinux(kernel))
    (outer,) = re.findall(r"^([0-9a-f]+) T outer$", table, re.MULTILINE)
    address = int(outer, 16) + calls(kernel, "outer")[0] + (0x2000000 if said else 0)
    text = f" [<{address:016x}>]"
    assert decode(text + said, kernel, soon()) == f"{text} (lib/inlined.c:10){said}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing to decode\n",
        " nowhere+0x1/0x2\n",
        " outer+0x0/0x40 [no_such_module]\n",
        " [<ffffffffdeadbeef>]\n",
        " outer+0x41/0x40\n",  # behind its end
        " outer+0x2/0x4\n",  # smaller than it is
        " outer+0x900/0x1000\n",  # in another function of this build
    ],
)
def test_what_cannot_be_found_stays_as_it_is(kernel: Kernel, text: str) -> None:
    assert decode(text, kernel, soon()) == text


def test_without_debugging_information_a_bare_address_gets_its_function(
    kernel: Kernel, tmp_path: Path
) -> None:
    run("objcopy", "--strip-debug", vmlinux(kernel), tmp_path / "vmlinux")
    plain = msgspec.structs.replace(kernel, vmlinux=tmp_path / "vmlinux")
    (row,) = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) T outer$", run("nm", "-S", vmlinux(kernel)), re.MULTILINE)
    start, size = (int(number, 16) for number in row)
    inside = f"[<{start + 2:016x}>]"
    assert decode(inside, plain, soon()) == f"{inside} (outer+0x2/{size:#x})"
    for text in (f" outer+0x2/{size:#x}\n", f"[<{start + (1 << 30):016x}>]"):
        assert decode(text, plain, soon()) == text


def test_without_a_vmlinux_nothing_is_found(tmp_path: Path) -> None:
    text = " outer+0x1/0x2\n"
    assert decode(text, Kernel(arch="x86_64", image=tmp_path, origin="a test"), soon()) == text


def test_a_vmlinux_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("no ELF file")
    kernel = Kernel(arch="x86_64", image=tmp_path, origin="a test", vmlinux=tmp_path / "vmlinux")
    with pytest.raises(BuildError, match="objdump"):
        decode(" outer+0x1/0x2\n", kernel, soon())


def test_too_little_time_is_an_error(kernel: Kernel) -> None:
    with pytest.raises(DeadlineError):
        decode(" outer+0x1/0x2\n", kernel, Deadline.after(0))
