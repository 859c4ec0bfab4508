"""Opens the symbols and the DWARF of a kernel: of its vmlinux, and of modules that it has loaded."""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from vmdebug.errors import UsageError
from vmdebug.kimage import debuginfo, elf, symbols
from vmdebug.trace.expressions import orc_table, types
from vmdebug.trace.expressions.dwarf import Unit
from vmdebug.trace.expressions.module_image import ModuleImage, PlacedModule
from vmdebug.trace.expressions.orc_table import OrcTable
from vmdebug.trace.expressions.syntax import NotCompiledError


class Kernel:
    """A vmlinux with DWARF, and modules that the kernel has loaded; a context manager that closes the file.

    Args:
        vmlinux: The file.
        modules: The modules.
        slide: How far KASLR has moved the kernel; only the places of modules depend on it.

    Raises:
        NotCompiledError: it has no DWARF, or DWARF that only GDB can read.
        UsageError: a file is damaged, or cannot be read.
    """

    def __init__(self, vmlinux: Path, modules: Sequence[PlacedModule] = (), slide: int = 0) -> None:
        found = debuginfo.dwarf(vmlinux)
        if not found.version or found.split:
            raise NotCompiledError(f"{vmlinux} has no DWARF, or has it in .dwo files")
        if found.compression == "zstd":
            raise NotCompiledError(f"the DWARF of {vmlinux} is compressed with zstd, which only GDB reads")
        self.vmlinux = vmlinux
        self._file = contextlib.ExitStack()
        path = Path(found.file) if found.file else vmlinux
        stream = self._file.enter_context(elf.opened(path))
        try:
            self._dwarf = elf.parse(path, stream).get_dwarf_info()
            self._aranges = self._dwarf.get_aranges()
            self._modules = [ModuleImage(each, slide) for each in modules]
        except UsageError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise elf.damaged(path, error) from error
        self._units: dict[tuple[int, int], Unit] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def addresses(self, symbol: str) -> tuple[int, ...]:
        """Return the linked addresses of a symbol."""
        return tuple(address for address, _ in self.sized(symbol))

    def sized(self, symbol: str) -> tuple[tuple[int, int], ...]:
        """Return the linked addresses and the sizes of a symbol: of the vmlinux, otherwise of the modules."""
        found = symbols.sized(self.vmlinux, symbol)
        return found or tuple(each for module in self._modules for each in module.sized(symbol))

    @functools.cached_property
    def functions(self) -> tuple[symbols.Function, ...]:
        """The functions of the symbol tables, by address."""
        own = symbols.functions(self.vmlinux)
        loaded = [each for module in self._modules for each in module.functions]
        return tuple(sorted((*own, *loaded), key=lambda each: each.address)) if loaded else own

    def symbols(self, prefix: str) -> list[str]:
        """Return the names of all symbols that begin with a prefix."""
        loaded = (each for module in self._modules for each in module.beginning(prefix))
        return [*symbols.beginning(self.vmlinux, prefix), *loaded]

    def symbol_at(self, address: int) -> str:
        """Return the name of the function at a linked address; "" if there is none."""
        number = bisect.bisect_right(self.functions, address, key=lambda each: each.address) - 1
        found = self.functions[number] if number >= 0 else None
        return found.name if found and address < found.address + max(found.size, 1) else ""

    @functools.cached_property
    def orc(self) -> OrcTable | None:
        """The ORC table; None if the vmlinux has none."""
        own = orc_table.of_vmlinux(self.vmlinux)
        return own and own.with_entries(each for module in self._modules for each in module.orc())

    def unit_at(self, address: int) -> Unit:
        """Return the compilation unit of an instruction.

        Raises:
            NotCompiledError: the DWARF does not say which one it is.
        """
        for number, (dwarf, aranges) in enumerate(self._parts()):
            at = aranges.cu_offset_at_addr(address) if aranges is not None else None
            if at is not None:
                return self._unit(number, dwarf, dwarf.get_CU_at(at))
        raise NotCompiledError(f"the DWARF does not say which file the code at {address:#x} is from")

    def _parts(self) -> Iterator[tuple[Any, Any]]:
        """Yield the DWARF of the vmlinux and of the modules, and its index of addresses."""
        yield self._dwarf, self._aranges
        yield from ((each.dwarf, each.aranges) for each in self._modules)

    def _unit(self, number: int, dwarf: Any, cu: Any) -> Unit:
        key = (number, cu.cu_offset)
        if key not in self._units:
            self._units[key] = Unit(self, cu, dwarf)
        return self._units[key]

    def units_of_file(self, file: str) -> Iterator[Unit]:
        """Yield the compilation units of a source file, which is named by the end of its path."""
        wanted = "/" + file.lstrip("/")
        for number, (dwarf, _) in enumerate(self._parts()):
            for cu in dwarf.iter_CUs() if dwarf is not None else ():
                name = types.text(cu.get_top_DIE())
                if ("/" + name).endswith(wanted):
                    yield self._unit(number, dwarf, cu)

    def unit_of(self, function: str) -> Unit:
        """Return the compilation unit of a function.

        Raises:
            NotCompiledError: there is no such function.
        """
        for address in self.addresses(function):
            return self.unit_at(address)
        raise NotCompiledError(f"the vmlinux has no function {function}")
