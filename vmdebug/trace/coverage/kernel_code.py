"""The code of a kernel and its modules: where it is in the guest, and which source files it is from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vmdebug import paths
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.trace.coverage import code, mapping
from vmdebug.trace.coverage.code import SECTION_SHIFT, Code
from vmdebug.trace.coverage.mapping import Known, Lines, Piece
from vmdebug.trace.coverage.wire import Block
from vmdebug.trace.expressions.module_image import PlacedModule

_KNOWN_FILE = "/init/main.c"
"""What precedes it in the debugging information is the kernel's tree."""


@functools.lru_cache(maxsize=64)
def _code(path: Path, _size: int, _changed: int) -> Code:
    return code.read(path, Deadline.after(_READ_SECONDS))


_READ_SECONDS = 600.0
"""How long binutils may take for a kernel of a distribution, which has ten times the code of a small one."""


def read(path: Path) -> Code:
    """Return the code of a file; read it once in each process.

    Raises:
        VmdebugError: see `code.read`.
    """
    seen = path.stat()
    return _code(path, seen.st_size, seen.st_mtime_ns)


class KernelCode:
    """The code of a guest's kernel.

    Args:
        kernel: The kernel, which has a vmlinux.
        source: The directory of its source; None: where the debugging information says, or `Kernel.source`.

    Raises:
        UsageError: there is no vmlinux, or it has no debugging information.
        HostError: there are no binutils.
    """

    def __init__(self, kernel: Kernel, source: Path | None = None) -> None:
        if kernel.vmlinux is None:
            raise UsageError(
                f"{kernel.origin} has no vmlinux, so coverage cannot name source lines",
                hint="give the vmlinux of its kernel: --vmlinux FILE",
            )
        self.vmlinux = kernel.vmlinux
        """The kernel's symbols."""
        self._kernel = kernel
        self._vmlinux = read(kernel.vmlinux)
        self._modules: dict[str, Code] = {}
        self.notes: list[str] = []
        """What is not named, and why."""
        main = next((each for each in self._vmlinux.files if each.endswith(_KNOWN_FILE)), _KNOWN_FILE)
        self._prefix = main.removesuffix(_KNOWN_FILE)
        self.root = _root(self._prefix, kernel, source)
        """The directory of its source on this machine."""

    def executed(
        self, blocks: Sequence[Block], slide: int, modules: Iterable[PlacedModule]
    ) -> dict[str, Lines]:
        """Return the lines and branches of blocks, by the paths of the source files on this machine.

        Args:
            blocks: What was executed.
            slide: How far KASLR has moved the kernel.
            modules: The modules that were loaded.
        """
        pieces = [*self._own(slide), *self._of_modules(modules)]
        found = mapping.executed(blocks, sorted(pieces, key=lambda each: each.low))
        if found.elsewhere:
            self.notes.append(
                f"{found.elsewhere} blocks of code have no name: they are in modules that were unloaded,"
                " or whose files are not known"
            )
        return {self._local(file): lines for file, lines in found.files.items()}

    def _own(self, slide: int) -> list[Piece]:
        addresses = self._vmlinux.addresses
        return [Piece(addresses[0] + slide, addresses[-1] + slide, self._vmlinux, slide)] if addresses else []

    def _of_modules(self, modules: Iterable[PlacedModule]) -> list[Piece]:
        found: dict[tuple[int, int], Piece] = {}
        for module in modules:
            held = self._module(module)
            if held is None:
                continue
            for name, number in held.sections.items():
                address, size = module.sections.get(name), held.sizes[number]
                if address is not None:
                    moved = address - (number << SECTION_SHIFT)
                    found[address, size] = Piece(address, address + size, held, moved)
        return list(found.values())

    def _module(self, module: PlacedModule) -> Code | None:
        if module.name not in self._modules:
            try:
                self._modules[module.name] = read(module.file)
            except UsageError as error:
                note = f"the code of the module {module.name} has no lines: {error.message}"
                if note not in self.notes:
                    self.notes.append(note)
                return None
        return self._modules[module.name]

    def known(self, executed: Mapping[str, Lines]) -> Known:
        """Return which lines and branches there are: of the kernel, and of the modules that were named.

        Args:
            executed: What was executed. The kernel patches itself, so that is not always in the files.
        """
        by_code = [mapping.possible(each) for each in (self._vmlinux, *self._modules.values())]
        files = {self._local(file): lines for file, lines in mapping.merged(by_code).items()}
        modules = {
            name: sorted({self._local(file) for file in held.files if file.endswith(".c")} & files.keys())
            for name, held in self._modules.items()
        }
        own = {file for some in modules.values() for file in some}
        inside = {file for file in files if file.startswith(f"{self.root}/") or file in own}
        return Known(
            root=str(self.root),
            files={file: files[file].merged(executed.get(file, Lines())) for file in sorted(inside)},
            modules=modules,
        )

    def _local(self, file: str) -> str:
        """Return the path on this machine of a file that the debugging information names."""
        inside = file.startswith(f"{self._prefix}/")
        return f"{self.root}{file[len(self._prefix) :]}" if inside else file


def _root(prefix: str, kernel: Kernel, source: Path | None) -> Path:
    """Return the directory of the kernel's source on this machine."""
    known = _KNOWN_FILE.lstrip("/")
    places = (Path(prefix) if prefix else None, kernel.source) if source is None else (source,)
    for place in places:
        if place is not None and paths.or_false((place / known).is_file):
            return place.absolute()
    if source is not None:
        raise UsageError(
            f"{source} is not the source of the kernel: it has no {known}",
            hint="--source takes the top directory of the kernel's tree",
        )
    return Path(prefix or "/")
