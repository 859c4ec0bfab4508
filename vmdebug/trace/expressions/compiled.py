"""Compiles a whole trace for a kernel: its places, programs, and the shapes of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmdebug.arch import Arch
from vmdebug.kimage import symbols
from vmdebug.trace.expressions import kernel_facts
from vmdebug.trace.expressions.dwarf import Scope
from vmdebug.trace.expressions.generate import Facts, Generator, Shape, UnavailableError
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.kernel_facts import Addresses
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.expressions.operations import Code, Label, Op, Program
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.expressions.types import Type
from vmdebug.trace.probe import Probe, Wanted

_COPIES = (".isra.0", ".constprop.0", ".part.0")
"""The suffixes that GCC adds to the names of functions that it has changed."""

_PART = ".part.0"
"""The suffix of the rest of a function whose start GCC inlined into the callers: not a call of its own."""


PC_INDEX, FRAME_INDEX, STACK_INDEX = 61, 62, 63
"""The indexes of a backtrace's parts among the values that could be read."""


class CompiledPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One address of a probe.

    Args:
        probe: The index of the probe.
        address: The address in the guest.
        code: The program.
        ranges: The code of the function and of those that it ends with a jump to, if its return value is
            recorded; otherwise ().
    """

    probe: int
    address: int
    code: tuple[Op, ...]
    ranges: tuple[tuple[int, int], ...] = ()


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A trace, compiled for a kernel.

    Args:
        places: The addresses at which to record hits.
        shapes: How the values of each probe's expressions are recorded.
        results: How the return value of each probe's function is read; None if no register holds it.
        registers: The registers that the programs read; then the stack pointer and the result's register.
        text: The strings that the programs compare with.
        context: The program that reads the task.
        clock: The program that reads the guest's time.
        addresses: The linked addresses of both.
        slide: How far KASLR has moved the kernel.
        thunks: The addresses of the return thunks: a kernel with mitigations jumps there to return.
        notes: What is not recorded, and why.
    """

    places: tuple[CompiledPlace, ...]
    shapes: tuple[tuple[Shape, ...], ...]
    results: tuple[Shape | None, ...]
    registers: tuple[str, ...]
    text: bytes
    context: tuple[Op, ...]
    clock: tuple[Op, ...]
    addresses: Addresses
    slide: int
    thunks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def compiled(
    wanted: Wanted, vmlinux: Path, row: Arch, slide: int, modules: Sequence[PlacedModule] = ()
) -> Compiled:
    """Compile a trace.

    Args:
        wanted: The trace.
        vmlinux: The kernel's symbols.
        row: Its architecture.
        slide: How far KASLR has moved it.
        modules: The modules whose functions can be traced, too.

    Raises:
        NotCompiledError: a place or an expression cannot be compiled; the message says which, and why.
        UsageError: the vmlinux is damaged.
    """
    with Kernel(vmlinux, modules, slide) as kernel:
        return _Compiler(wanted, kernel, row, slide).result()


class _Compiler:
    def __init__(self, wanted: Wanted, kernel: Kernel, row: Arch, slide: int) -> None:
        self._wanted = wanted
        self._kernel = kernel
        self._slide = slide
        self._registers: list[str] = []
        self._text = bytearray()
        self._notes: list[str] = []
        self._addresses = kernel_facts.addresses(kernel)
        self._facts = Facts(row=row, slide=slide, task=self._push_task if self._addresses.current else None)

    def _push_task(self, program: Program) -> None:
        kernel_facts.push_task(self._addresses, self._facts, program)

    def _program(self) -> Program:
        return Program(self._registers, self._text)

    def result(self) -> Compiled:
        places, shapes, results = [], [], []
        left_out: list[str] = []
        for index, probe in enumerate(self._wanted.probes):
            try:
                one = self._probe(index, probe)
            except NotCompiledError as error:
                if probe.where not in self._wanted.matched:
                    raise
                left_out.append(f"{probe.where}: {error.message}")
                one = ([], (Shape("unsigned"),) * len(probe.args), None)
            places += one[0]
            shapes.append(one[1])
            results.append(one[2])
        if left_out:
            verb = "is" if len(left_out) == 1 else "are"
            self._notes.append(f"{len(left_out)} of the functions {verb} not traced: {left_out[0]}")
        context = kernel_facts.context(self._addresses, self._facts, self._program())
        clock = kernel_facts.clock(self._addresses, self._facts, self._program())
        debug = self._facts.row.debug
        return Compiled(
            places=tuple(places),
            shapes=tuple(shapes),
            results=tuple(results),
            registers=(*self._registers, debug.sp, debug.result),
            text=bytes(self._text),
            context=context,
            clock=clock,
            addresses=self._addresses,
            slide=self._slide,
            thunks=tuple(
                each + self._slide for name in debug.return_thunks for each in self._kernel.addresses(name)
            ),
            notes=tuple(self._notes),
        )

    def _probe(self, index: int, probe: Probe) -> tuple[list[CompiledPlace], tuple[Shape, ...], Shape | None]:
        """Return the places of a probe, the shapes of its values, and that of its return value."""
        scopes = self._scopes(probe.where)
        result = self._result(probe.where, scopes)
        values: dict[int, Shape] = {}
        places = []
        for scope in scopes:
            code = self._code(scope, probe, values)
            ranges = (*scope.ranges, *scope.tail_calls) if scope.ranges and self._wanted.ret else ()
            moved = tuple((low + self._slide, high + self._slide) for low, high in ranges)
            address = scope.address + self._slide
            places.append(CompiledPlace(probe=index, address=address, code=code, ranges=moved))
        return places, tuple(values[each] for each in range(len(probe.args))), result

    def _scopes(self, where: str) -> list[Scope]:
        """Return the places of a function: its code, and where it is inlined into others of the same file."""
        file, _, line = where.rpartition(":")
        if file and line.isdigit():
            return self._lines(file, int(line))
        if where in self._wanted.matched:
            return self._own_code(where)
        if not where.replace(".", "_").isidentifier() or "." in where:
            raise NotCompiledError(f"{where} is not the name of a function")
        places = [each for name in ("", *_COPIES) for each in self._kernel.addresses(where + name)]
        if not places:
            raise NotCompiledError(
                f"neither the vmlinux nor a loaded module has a function {where}, or it is inlined everywhere"
            )
        units = {id(unit): unit for unit in map(self._kernel.unit_at, places)}
        parts = self._kernel.addresses(where + _PART)
        found = [each for unit in units.values() for each in unit.scopes(where) if each.address not in parts]
        outside = [span for each in found for span in each.ranges]
        # GCC can inline a part of a function into that function itself; this is not another call.
        alone = [
            each
            for each in found
            if each.entry or not any(low <= each.address < high for low, high in outside)
        ]
        if not alone:
            raise NotCompiledError(f"the DWARF does not describe {where}")
        return alone

    def _lines(self, file: str, line: int) -> list[Scope]:
        """Return the places at which a line's statements begin.

        Raises:
            NotCompiledError: there is no code for the line.
        """
        found = [
            unit.scope_at(address)
            for unit in self._kernel.units_of_file(file)
            for address in unit.lines.places(line, file)
        ]
        if not found:
            raise NotCompiledError(f"the DWARF has no code for line {line} of {file}")
        return found

    def _own_code(self, function: str) -> list[Scope]:
        """Return the places of a function that a pattern has matched, without those where it is inlined."""
        found = [
            Scope(
                unit=unit,
                address=address,
                entry=True,
                function=entry,
                blocks=(entry,),
                ranges=unit.code(entry),
            )
            for address in self._kernel.addresses(function)
            for unit in [self._kernel.unit_at(address)]
            for entry in unit.functions_at(address)
        ]
        if not found:
            raise NotCompiledError(f"the DWARF does not describe {function}")
        return found

    def _code(self, scope: Scope, probe: Probe, values: dict[int, Shape]) -> tuple[Op, ...]:
        program = self._program()
        generator = Generator(program, scope, self._facts)
        if self._wanted.when and not (self._wanted.callees and probe.where in self._wanted.matched):
            generator.condition(self._wanted.when)
        for number, text in enumerate(probe.args):
            try:
                shape = generator.put(text, number)
            except UnavailableError as error:
                if scope.entry:
                    raise
                # The expression has a value at the function's other places.
                self._notes.append(f"{error.message}, where {probe.where} is inlined")
                continue
            if values.setdefault(number, shape) != shape:
                raise NotCompiledError(
                    f"{text} has different types in the functions that are named {probe.where}"
                )
        if self._wanted.backtrace:
            self._put_stack(program, scope.address + self._slide)
        return program.finished()

    def _put_stack(self, program: Program, pc: int) -> None:
        """Append the program counter, the frame pointer and the stack to the values."""
        row = self._facts.row
        after = Label()
        program.jump(Code.FAIL_TO, after)
        program(Code.CONSTANT, value=pc)
        program.put(PC_INDEX)
        program.register(row.debug.frame_pointer)
        program.put(FRAME_INDEX)
        kernel_facts.push_interrupt_stack(self._addresses, self._facts, program)
        program.register(row.debug.sp)
        program(Code.PUT_STACK, number=STACK_INDEX, value=symbols.thread_size(self._kernel.vmlinux))
        program.mark(after)

    def _result(self, where: str, scopes: list[Scope]) -> Shape | None:
        """Return how to read the return value; None if it is not wanted, or no register holds it."""
        if not self._wanted.ret:
            return None
        if any(not each.ranges for each in scopes):
            self._notes.append(f"{where} is inlined: its hits there have no return value")
        results = {_register(each.result) for each in scopes if each.ranges}
        found = results.pop() if len(results) == 1 else None
        if found is None and where not in self._wanted.matched:
            self._notes.append(f"{where} returns no value in a register: its hits have no return value")
        return found


def _register(kind: Type) -> Shape | None:
    if not kind.is_number or kind.size not in (1, 2, 4, 8):
        return None
    return Shape("signed" if kind.signed else "unsigned", kind.size)
