"""Symbols of the guest's modules: of those that are loaded now, and of those that are loaded later."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import gdb
import vmd_batch
import vmd_debuginfo
import vmd_elf
import vmd_guest
import vmd_kgdb
import vmd_later
import vmd_loaded_modules
import vmd_module_files
import vmd_scratch
import vmd_slide
from vmd_bare_modules import BARE
from vmd_registers import WORD

STARTING = "do_init_module"
"""The kernel calls it just before a module's init function: kernel/module/main.c."""


_LINE = "\n"

_BY_KALLSYMS = "; its functions have their names from the guest's kallsyms"

_STRIPPED = "; it has no debug information, so GDB knows neither its lines nor its types"

NOWHERE = 0xDEAD << 48
"""Address for sections that the kernel has freed: no address in the guest resolves to their symbols."""

_NOWHERE_EACH = 1 << 32


class Symbols:
    """The modules whose symbols GDB has.

    Attributes:
        path: The directories that are searched for module files, separated by colons.
        own: The directories among them that the user has given.
        files: Path of each module's file, by module name; None before the search.
        placed: The modules that have symbols, by name.
        taken: The files of these symbols, by module name; also of modules that were unloaded since.
        errors: Error message for each module without symbols, by name.
        behind: Whether a module was loaded since the last `follow`.
    """

    def __init__(self) -> None:
        self.path = ""
        self.own: list[str] = []
        self.files: dict[str, Path] | None = None
        self.placed: dict[str, vmd_loaded_modules.Module] = {}
        self.taken: dict[str, Path] = {}
        self.errors: dict[str, str] = {}
        self.behind = False

    def use(self, path: str) -> None:
        """Search these directories from now on."""
        if path != self.path:
            self.path = path
            self.files = None
            self.errors.clear()

    def follow(self) -> list[str]:
        """Update the symbols to the modules that the guest has loaded.

        Returns:
            One line for each change and for each new error.
        """
        self.behind = False
        present = {module.name: module for module in vmd_loaded_modules.loaded()}
        said = []
        anew = self.files is None
        BARE.outdated(present)
        for name, module in list(self.placed.items()):
            if present.get(name) is None or present[name].address != module.address:
                said.append(self._remove(module))
        for module in present.values():
            if module.name not in self.placed:
                said.append(self._add(module))
            elif module.freed != self.placed[module.name].freed:
                # The kernel has freed its init sections: other data may be at those addresses.
                self._remove(self.placed[module.name])
                self._add(module)
            elif anew and self._files().get(module.name, self.taken[module.name]) != self.taken[module.name]:
                self._remove(self.placed[module.name])
                said.append(self._add(module))
        return [line for line in said if line]

    def _add(self, module: vmd_loaded_modules.Module) -> str:
        try:
            packed = self._find(module)
            file = self._unpacked(packed, module)
            BARE.forget(module.name)
            where = (f"-s {shlex.quote(name)} {at:#x}" for name, at in self._places(module, file))
            words = f"{shlex.quote(str(file))} {module.address:#x} {' '.join(where)}"
            # GDB's index cache is keyed by build-id, but a module's index depends on its address: after the
            # next boot, no address would have a source line.
            with gdb.with_parameter("confirm", False), gdb.with_parameter("index-cache enabled", False):
                gdb.execute(f"add-symbol-file {words}", to_string=True)
        except (OSError, ValueError, gdb.error) as error:
            line = f"{module.name}: no symbols: {error}"
            if self._named(module):
                line += _BY_KALLSYMS
            known = self.errors.get(module.name)
            self.errors[module.name] = line
            return "" if known == line else line
        self.placed[module.name] = module
        self.taken[module.name] = packed
        stripped = vmd_debuginfo.stripped(str(file), vmd_elf.sections(str(file)))
        if stripped:
            BARE.placed(module, file)
        return f"{module.name}: symbols at {module.address:#x} from {packed}{_STRIPPED if stripped else ''}"

    def _places(self, module: vmd_loaded_modules.Module, file: Path) -> Iterator[tuple[str, int]]:
        # Sections that the kernel does not keep, for example .modinfo and __versions, would get address 0,
        # and their symbols would match addresses of user space.
        kept = {name: at for name, at in module.sections.items() if not module.lost(name)}
        for name in kept.keys() - {".text"}:
            yield name, kept[name]
        away = [name for name in vmd_module_files.allocated(file) if name not in kept and name != ".text"]
        for number, name in enumerate(away):
            yield name, NOWHERE + len(self.placed) * _NOWHERE_EACH + (number << 24)

    def _named(self, module: vmd_loaded_modules.Module) -> bool:
        """Give a module without a file the symbols that the kernel keeps; return whether there are any."""
        try:
            return BARE.named(module)
        except (OSError, ValueError, gdb.error, gdb.GdbError):
            return False

    def _remove(self, module: vmd_loaded_modules.Module) -> str:
        del self.placed[module.name]
        BARE.forget(module.name)
        try:
            with gdb.with_parameter("confirm", False):
                gdb.execute(f"remove-symbol-file -a {module.address:#x}", to_string=True)
        except gdb.error:
            return ""  # the user has removed it already
        return f"{module.name}: unloaded"

    def _find(self, module: vmd_loaded_modules.Module) -> Path:
        packed = self._files().get(module.name)
        if packed is None:
            raise FileNotFoundError(f"no file for it in {self.path.replace(':', ', ')}")
        return packed

    def _files(self) -> dict[str, Path]:
        if self.files is None:
            self.files = vmd_module_files.index(
                Path(each).expanduser() for each in self.path.split(":") if each
            )
        return self.files

    def _unpacked(self, packed: Path, module: vmd_loaded_modules.Module) -> Path:
        file = vmd_module_files.unpacked(packed, vmd_scratch.directory())
        theirs, ours = module.build_id(), vmd_module_files.build_id(file)
        if theirs and ours and theirs != ours:
            raise ValueError(
                f"{packed} is of another build: its build-id is {ours}, the loaded module's {theirs}"
            )
        return file


SYMBOLS = Symbols()


class Starting(gdb.Breakpoint):
    """A breakpoint that every new module hits just before its init function runs.

    It stops the guest only if a breakpoint is pending, or is in a module, which may be this one loaded again:
    then the symbols are read. stop() itself must not read them, because that changes breakpoints.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place, internal=True)
        self.silent = True
        self.commands = f"{Modules.NAME} --starting\ncontinue"

    def stop(self) -> bool:
        """Stop if a breakpoint may be in this module; otherwise note that a module was loaded."""
        SYMBOLS.behind = True
        return any(each.enabled and (each.pending or _in_module(each)) for each in gdb.breakpoints())


def _in_module(breakpoint_: gdb.Breakpoint) -> bool:
    """Whether a breakpoint is, or was, in a module: after an unload GDB does not make it pending."""
    if not SYMBOLS.taken or breakpoint_.type not in (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT):
        return False
    try:
        first, end = (int(gdb.parse_and_eval(name)) & WORD for name in ("&_stext", "&_end"))
        return not all(first <= location.address < end for location in breakpoint_.locations)
    except (gdb.error, AttributeError):  # GDB before 13 has no locations
        return True


class Watch:
    """Whether modules that are loaded later get symbols, and the breakpoint for that."""

    def __init__(self) -> None:
        self.wanted = False
        self.starting: Starting | None = None

    def set(self) -> None:
        """Set the breakpoint as soon as possible: under KVM not before the kernel is mapped.

        Move it if KASLR has moved the kernel since.
        """
        if (
            self.wanted
            and not vmd_kgdb.stuck_later()
            and (vmd_guest.accel() == "tcg" or vmd_guest.kernel_runs())
        ):
            self.wanted = False
            self.starting = Starting(_starting())
        elif self.starting is not None and self.starting.location != _starting():
            self.forget()
            self.set()

    def forget(self) -> None:
        """Delete the breakpoint, until it is set again: the kernel is another one, or has moved."""
        if self.starting is not None:
            self.starting.delete()
            self.starting, self.wanted = None, True


def _starting() -> str:
    """Return the location of the breakpoint: an address, for which GDB need not look up the name.

    Raises:
        gdb.GdbError: the vmlinux has no such function; a breakpoint by name would become pending.
    """
    at = vmd_slide.address(STARTING)
    if at is None:
        raise gdb.GdbError(f"the vmlinux has no function {STARTING}")
    return f"*{at:#x}"


WATCH = Watch()


class Modules(gdb.Command):
    """Give GDB the symbols of the guest's modules: vmd-modules [--watch [--later]] [DIRECTORY...].

    Lists the loaded modules, with their addresses and the files that their symbols come from.
    Searches the given directories, now and later, then those in $vmd_modules_path (separated
    by colons); if that is not set, the directory of vmlinux, /lib/modules/RELEASE and
    /usr/lib/debug/lib/modules/RELEASE. Finds .ko, .ko.xz, .ko.zst, .ko.gz and .ko.debug
    files. Refuses a file of another build than the loaded module.

    With --watch, modules that are loaded later get symbols too, in time for a pending
    breakpoint in their init function. Prints only what changes. With --later, watches for
    them from your first command on.

    Example: vmd-modules --watch /src/linux
    """

    NAME = "vmd-modules"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Update the symbols."""
        words = gdb.string_to_argv(argument)
        options = {word for word in words if word.startswith("--")}
        directories = [word for word in words if word not in options]
        if options - {"--watch", "--starting", "--later"}:
            vmd_batch.fail(f"vmd-modules has no option {' '.join(sorted(options))}", vmd_batch.USAGE)
        for each in directories:
            if not Path(each).expanduser().is_dir():
                vmd_batch.fail(
                    f"{each} is not a directory\ngive a directory with module files in it", vmd_batch.USAGE
                )
        vmd_guest.need_connected()
        SYMBOLS.own = list(dict.fromkeys([*directories, *SYMBOLS.own]))
        SYMBOLS.use(":".join([*SYMBOLS.own, _usual_path()]))
        WATCH.wanted |= "--watch" in options and WATCH.starting is None
        try:
            if "--later" in options:
                _starting()  # an error must not come later
                vmd_later.add(catch_up)
            else:
                WATCH.set()
            if options:
                _follow()
            else:
                _list()
        except (gdb.error, gdb.GdbError) as error:
            # A kernel without modules, or a vmlinux without types, does not end a batch.
            why = vmd_slide.misplaced() or str(error)
            # `attach` gives the options; it has told how to get debugging information.
            vmd_batch.say(f"no symbols for modules: {why.partition(_LINE)[0] if options else why}")


def catch_up(_event: object = None) -> None:
    """Do what is not possible while the guest runs."""
    if vmd_later.waits(catch_up):
        return
    thread = gdb.selected_thread()
    if thread is None or thread.is_running():
        return
    WATCH.set()
    if SYMBOLS.behind:
        _follow()


def _follow() -> None:
    if vmd_guest.kernel_runs():
        for line in SYMBOLS.follow():
            vmd_batch.say(line)


def _list() -> None:
    SYMBOLS.errors.clear()  # print the reasons again
    modules: list[vmd_loaded_modules.Module] = []
    if vmd_guest.kernel_runs():
        SYMBOLS.follow()
        modules = vmd_loaded_modules.loaded()
    for line in SYMBOLS.errors.values():
        vmd_batch.say(line)
    for module in modules:
        file = SYMBOLS.taken[module.name] if module.name in SYMBOLS.placed else "no symbols"
        print(f"{module.name:<20} {module.address:#x}  {file}")
    if not modules:
        print("no module is loaded")


def register() -> None:
    """Update before each prompt, and before each command of a batch."""
    gdb.events.before_prompt.connect(catch_up)
    vmd_batch.BEFORE.append(catch_up)


def _usual_path() -> str:
    given = gdb.convenience_variable("vmd_modules_path")
    if given is not None:
        return given.string()
    release = vmd_guest.release()
    places = [Path(vmd_guest.vmlinux()).parent]
    if release:
        places += [Path("/lib/modules", release), Path("/usr/lib/debug/lib/modules", release)]
    return ":".join(map(str, places))
