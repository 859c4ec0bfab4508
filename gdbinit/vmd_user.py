"""Shows the user program of a task: symbols where the kernel has mapped it, its stack; `$vmd_pid()`."""

from __future__ import annotations

import shlex
import struct
from pathlib import Path

import gdb
import vmd_arch
import vmd_batch
import vmd_guest
import vmd_kernel
import vmd_registers
import vmd_task
import vmd_user_frames

_WORD_BYTES = 8
_PT_LOAD, _PF_X = 1, 1
_PATH_PARTS = 64


class User(gdb.Command):
    """Load the symbols of a task's program, and show its stack there: vmd-user PID [FILE].

    FILE is the program on this machine; by default the one at the path that it has in the
    guest. Its symbols are loaded at the address where the kernel has mapped it, also if it
    is position-independent. The stack is shown if a CPU runs the task: only then its memory
    is mapped. Later backtraces of the task go on from the kernel into its program. A
    breakpoint for this task alone: break WHERE if $vmd_pid() == PID

    Example: vmd-user 62 ./reproducer
    """

    NAME = "vmd-user"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Load the symbols, and print the stack."""
        vmd_guest.need_connected()
        words = shlex.split(argument)
        if len(words) not in (1, 2) or not words[0].isdigit():
            vmd_batch.fail("vmd-user takes a pid and a program\nexample: vmd-user 62 ./prog", vmd_batch.USAGE)
        task = vmd_task.find(words[0])[0]
        if not task["mm"]:
            vmd_batch.fail(f"pid {words[0]} is a kernel thread: it has no program", vmd_batch.USAGE)
        inside = path_of(task)
        file = Path(words[1] if len(words) > 1 else inside).expanduser()
        offset = _offset(task, file)
        _load(str(file.absolute()), offset)
        code = range(*(int(task["mm"][name]) for name in ("start_code", "end_code")))
        vmd_user_frames.USER.know(task, [code])
        if Path(inside).name != file.name:
            vmd_batch.say(f"the task runs {inside}; {file} is another name")
        print(f"{file}: at {offset:#x} in pid {words[0]} ({vmd_kernel.name_of(task)}), which runs {inside}")
        print(f"a breakpoint for it alone: break WHERE if $vmd_pid() == {words[0]}")
        cpu = vmd_task.running().get(vmd_kernel.address_of(task))
        if cpu is None:
            print("no CPU runs it now, so its stack is not mapped")
            return
        _show(cpu)


_loaded: dict[str, int] = {}
"""The programs whose symbols are loaded, with how far they are moved."""


def _load(file: str, offset: int) -> None:
    if _loaded.get(file) == offset:
        return
    if file in _loaded:
        gdb.execute(f"remove-symbol-file {shlex.quote(file)}", to_string=True)
    gdb.execute(f"add-symbol-file {shlex.quote(file)} -o {offset:#x}", to_string=True)
    _loaded[file] = offset


def path_of(task: gdb.Value) -> str:
    """Return the path of a task's program in the guest; see prepend_path of fs/d_path.c."""
    path = task["mm"]["exe_file"]["f_path"]
    entry, mounted = path["dentry"], path["mnt"]
    kind = vmd_kernel.struct("mount")
    offset = vmd_kernel.offset_of(kind, "mnt")
    parts: list[str] = []
    while len(parts) < _PATH_PARTS:
        if entry == mounted["mnt_root"]:
            mount = vmd_kernel.at(int(mounted) - offset, kind)
            if int(mount["mnt_parent"]) & (2**64 - 1) == vmd_kernel.address_of(mount):
                break
            parent = int(mount["mnt_parent"]) + offset
            entry, mounted = mount["mnt_mountpoint"], gdb.Value(parent).cast(mounted.type)
            continue
        parts.append(entry["d_name"]["name"].string(errors="replace"))
        entry = entry["d_parent"]
    return "/" + "/".join(reversed(parts))


def _offset(task: gdb.Value, file: Path) -> int:
    """Return how far the kernel has moved a program; see load_elf_binary of fs/binfmt_elf.c."""
    try:
        first = first_code(file.read_bytes())
    except OSError as error:
        vmd_batch.fail(
            f"cannot read {file}: {error.strerror}\ngive the program: vmd-user PID FILE", vmd_batch.USAGE
        )
    except (ValueError, struct.error):
        vmd_batch.fail(f"{file} is not a 64-bit ELF program\ngive the program, not a script", vmd_batch.USAGE)
    return int(task["mm"]["start_code"]) - first


def first_code(data: bytes) -> int:
    """Return the lowest address of the segments with code.

    Raises:
        ValueError: it is not a 64-bit, little-endian ELF file, or has no code.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(data[:6])
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    found: list[int] = []
    for number in range(count):
        kind, flags, _, address = struct.unpack_from("<IIQQ", data, offset + number * size)
        if kind == _PT_LOAD and flags & _PF_X:
            found.append(address)
    return min(found, default=0)


def _show(cpu: int) -> None:
    """Print the stack of the program that a CPU runs, or has left for the kernel."""
    selected = gdb.selected_thread()
    vmd_guest.cpus()[cpu].switch()
    try:
        if int(gdb.newest_frame().pc()) >> 63:
            vmd_task.print_from(vmd_task.SLEEPER.show(vmd_task.Asleep(_registers())).level())
        else:
            gdb.execute("backtrace")
    finally:
        vmd_task.SLEEPER.clear()
        if selected is not None:
            selected.switch()


def _registers() -> dict[str, int]:
    """Return the registers of user space, which the kernel's entry code has saved on its stack."""
    arch = vmd_arch.current()
    entry = gdb.newest_frame()
    while (older := entry.older()) is not None and older.pc() not in (0, vmd_user_frames.BRIDGE):
        entry = older
    sp = int(entry.read_register(arch.sp).cast(vmd_registers.word()))
    memory = vmd_guest.memory(sp, _WORD_BYTES * len(arch.pt_regs))
    if memory:
        saved = struct.unpack(f"<{len(arch.pt_regs)}Q", memory)
        every = dict(zip(arch.pt_regs, saved, strict=True))
        if every[arch.mode_register] & arch.user_mode:
            return {name: every[name] for name in arch.unwound}
    raise gdb.GdbError("GDB cannot unwind from this CPU to user space\nstep on, and try again")


class Pid(gdb.Function):
    """$vmd_pid(): the pid of the task that the selected CPU runs."""

    def __init__(self) -> None:
        super().__init__("vmd_pid")

    def invoke(self, *_arguments: gdb.Value) -> int:
        """Return it."""
        thread = gdb.selected_thread()
        if thread is None:
            raise gdb.GdbError("GDB is not connected to a guest")
        return int(vmd_kernel.current(vmd_guest.cpu_of(thread))["pid"])


def register() -> None:
    """Define the function."""
    Pid()
