"""C expressions compiled from the DWARF of a small program, and run by an interpreter in Python."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.kimage import symbols
from vmdebug.trace.expressions import syntax
from vmdebug.trace.expressions.compiled import Compiled, compiled
from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.expressions.operations import WORD, Code, Op
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.probe import Probe, Wanted

X86_64 = arch.by_name("x86_64")

SOURCE = """
#define OUT __attribute__((noipa))
typedef unsigned char u8;
enum color { RED = 1, GREEN = -2 };
struct inner { int first; struct { short deep; }; };
struct item {
    struct item *next; const char *name; u8 tag; int low : 3; unsigned high : 13; unsigned long flags;
    struct inner inner; int numbers[4]; char text[8]; enum color color; _Bool yes; double real;
    void (*call)(void);
};
struct item items[3] = {{0}};
int level = 7;
static volatile long sink;
OUT int traced(struct item *it, unsigned int count, signed char small, long big, u8 tiny, _Bool flag)
{
    sink += it->flags + count + small + big + tiny + flag;
    return sink;
}
static inline __attribute__((always_inline)) int copied(int x) { sink += x; return x; }
OUT int copied_outside(int x) { return copied(x) + level; }
static __attribute__((noinline)) void nothing(void) { sink++; }
OUT int ends_elsewhere(struct item *it) { return traced(it, 1, 2, 3, 4, 0); }
OUT int tail(struct item *it) { nothing(); return it->color; }
OUT struct inner by_value(struct inner in) { in.first += sink; return in; }
OUT int stacked(long a, long b, long c, long d, long e, long f, long seventh) { return seventh + sink; }
OUT enum color colored(void) { return sink ? RED : GREEN; }
void _start(void) { items[0].color = colored(); traced(items, level, 1, 2, 3, 1); copied_outside(1);
    tail(items); stacked(1, 2, 3, 4, 5, 6, 7); by_value(items[0].inner);
    ends_elsewhere(items); }
"""


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dwarf") / "vmlinux"
    flags = [
        "-O2",
        "-g",
        "-nostdlib",
        "-static",
        "-fno-ipa-cp",
        "-fno-ipa-sra",
        "-fno-inline-functions",
        "-w",
    ]
    process.run(
        ["gcc", *flags, "-x", "c", "-", "-o", made], stdin=SOURCE.encode(), deadline=Deadline.after(60)
    )
    return made


@pytest.fixture(autouse=True)
def _cache(vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(vmlinux.parent / "cache"))


ITEM, OTHER, NAME, SP = 0x100000, 0x200000, 0x300000, 0x7000


def item(**values: object) -> bytes:
    """Return a `struct item` in memory."""
    given: dict[str, object] = {"next": 0, "name": NAME, "tag": 0xFE, "bits": 0, "flags": 0, **values}
    return struct.pack(
        "<QQBBHxxxxQihxx4i8siB3xdQ",
        given["next"], given["name"], given["tag"], given["bits"] & 0xFF, given["bits"] >> 8, given["flags"],  # type: ignore[operator]
        -5, -6, 10, 11, 12, -13, b"hi\0there", -2, 1, 2.5, 0xFFFF,
    )  # fmt: skip


_BINARY: dict[Code, Callable[[int, int], int]] = {
    Code.ADD: operator.add, Code.SUBTRACT: operator.sub, Code.MULTIPLY: operator.mul,
    Code.DIVIDE: operator.floordiv, Code.MODULO: operator.mod, Code.AND: operator.and_, Code.OR: operator.or_,
    Code.EXCLUSIVE_OR: operator.xor, Code.SHIFT_LEFT: operator.lshift, Code.SHIFT_RIGHT: operator.rshift,
    Code.EQUAL: operator.eq, Code.LESS: operator.lt, Code.LESS_OR_EQUAL: operator.le,
    Code.SHIFT_RIGHT_SIGNED: lambda b, a: signed(b) >> a,
    Code.DIVIDE_SIGNED: lambda b, a: int(signed(b) / signed(a)),
    Code.MODULO_SIGNED: lambda b, a: signed(b) - signed(a) * int(signed(b) / signed(a)),
    Code.LESS_SIGNED: lambda b, a: signed(b) < signed(a),
    Code.LESS_OR_EQUAL_SIGNED: lambda b, a: signed(b) <= signed(a),
}  # fmt: skip
_UNARY: dict[Code, Callable[[int], int]] = {
    Code.NEGATE: operator.neg, Code.INVERT: operator.invert, Code.NOT: operator.not_
}  # fmt: skip


def signed(number: int, bits: int = 64) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> (bits - 1) else number


def read(memory: dict[int, bytes], address: int, size: int) -> bytes:
    for start, data in memory.items():
        if start <= address and address + size <= start + len(data):
            return data[address - start : address - start + size]
    raise LookupError


class Filtered(Exception):  # noqa: N818 - no error
    pass


def run(  # noqa: C901, PLR0912, PLR0915 - an operation a case
    found: Compiled, code: tuple[Op, ...], registers: dict[str, int], memory: dict[int, bytes]
) -> dict[int, object]:
    """Run a program as plugin.c does, and return what it puts."""
    stack: list[int] = []
    put: dict[int, object] = {}
    at, fail = 0, -1
    while (op := code[at]).code is not Code.END:
        at += 1
        try:
            match op.code:
                case Code.FAIL_TO:
                    fail = op.target
                case Code.REGISTER:
                    stack.append(registers[found.registers[op.number]] & WORD)
                case Code.CONSTANT:
                    stack.append(op.value)
                case Code.CPU:
                    stack.append(3)
                case Code.DUPLICATE:
                    stack.append(stack[-1])
                case Code.LOAD:
                    data = read(memory, (stack.pop() + op.value) & WORD, op.size)
                    stack.append(int.from_bytes(data, "little", signed=bool(op.number)) & WORD)
                case Code.EXTEND:
                    value = (stack.pop() >> op.value) & ((1 << op.size) - 1)
                    stack.append((signed(value, op.size) if op.number else value) & WORD)
                case Code.JUMP:
                    at = op.target
                case Code.JUMP_IF_ZERO:
                    at = at if stack.pop() else op.target
                case Code.FILTER:
                    if not stack.pop():
                        raise Filtered
                case Code.SAME_STRING:
                    wanted = found.text[op.target : op.target + op.value]
                    stack.append(int(read(memory, stack.pop(), len(wanted)) == wanted))
                case Code.PUT_REGISTER:
                    put[op.number] = registers[found.registers[op.target]] & WORD
                case Code.PUT:
                    put[op.number] = stack.pop()
                case Code.PUT_STRING:
                    put[op.number] = read(memory, stack.pop(), 8).partition(b"\0")[0]
                case Code.PUT_MEMORY:
                    put[op.number] = read(memory, stack.pop(), op.value)
                case code_ if code_ in _UNARY:
                    stack.append(_UNARY[code_](stack.pop()) & WORD)
                case _:
                    right = stack.pop()
                    stack.append(int(_BINARY[op.code](stack.pop(), right)) & WORD)
        except LookupError:
            assert fail >= 0
            at = fail
    assert not stack
    return put


REGISTERS = {
    "rdi": ITEM,
    "rsi": 0xDEAD_0000_0007,  # the upper half of a register with an int is undefined
    "rdx": 0xFF80,
    "rcx": -(2**40),
    "r8": 0x1FF,
    "r9": 1,
    "rsp": SP,
}


def memory(vmlinux: Path) -> dict[int, bytes]:
    (level,) = symbols.addresses(vmlinux, "level")
    first = item(next=OTHER, bits=0b1010101010101_110, flags=1 << 63)
    return {
        ITEM: first,
        OTHER: item(next=0xBAD, flags=5),
        NAME: b"a name\0\0",
        level: (7).to_bytes(4, "little"),
        SP: struct.pack("<QQ", 0xAAAA, 77),
    }


def evaluate(vmlinux: Path, text: str, where: str = "traced") -> object:
    found = compiled(Wanted((Probe(where, (text,)),)), vmlinux, X86_64, 0)
    value = run(found, found.places[0].code, REGISTERS, memory(vmlinux)).get(0)
    shape = found.shapes[0][0]
    return signed(value) if shape.kind == "signed" and isinstance(value, int) else value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("it", ITEM),
        ("count", 7),
        ("small", -128),
        ("big", -(2**40)),
        ("tiny", 0xFF),
        ("flag", 1),
        ("it->tag", 0xFE),
        ("it->low", -2),
        ("it->high", 0b1010101010101),
        ("it->flags", 1 << 63),
        ("it->inner.first", -5),
        ("it->inner.deep", -6),
        ("(*it).inner.first", -5),
        ("it->next->flags", 5),
        ("it->next->next", 0xBAD),
        ("it->next->next->flags", None),
        ("it->numbers[3]", -13),
        ("it->numbers[count - 5]", 12),
        ("*(it->numbers + 1)", 11),
        ("it->name", b"a name"),
        ("it->text", b"hi\0there"),
        ("it->color", -2),
        ("it->color == GREEN", 1),
        ("it->yes", 1),
        ("it->real", struct.pack("<d", 2.5)),
        ("it->call", 0xFFFF),
        ("&it->numbers[2]", ITEM + 48),
        ("&it[1].flags", ITEM + 88 + 24),
        ("level", 7),
        ("&level - 1 < &level", 1),
        ("count + 1", 8),
        ("-count", 2**32 - 7),
        ("-small", 128),
        ("~tiny", -256),
        ("!flag", 0),
        ("count << 30", (7 << 30) & 0xFFFFFFFF),
        ("big >> 4", -(2**36)),
        ("big / 3", int(-(2**40) / 3)),
        ("big % 1000", -(2**40 % 1000)),
        ("small < count", 0),  # as C converts it
        ("small < 7", 1),
        ("(int)count - 8 < 0", 1),
        ("count - 8 > 0", 1),
        ("big == -1099511627776", 1),
        ("(unsigned char)big | 0x10", 16),
        ("(u8)0x1fe", 0xFE),
        ("(_Bool)count", 1),
        ("((struct item *)it->next)->flags", 5),
        ("(char *)it->name", b"a name"),
        ("it->next == 0 || it->flags", 1),
        ("flag && it->next->next->flags", None),
        ("!flag && it->next->next->flags", 0),
        ("flag ? count : big", 7),
        ("sizeof(struct item)", 88),
        ("container_of(&it->inner, struct item, inner)->flags", 1 << 63),
        ("container_of(&it->inner.deep, struct item, inner.deep)", ITEM),
        ('$_streq(it->name, "a name")', 1),
        ('$_streq(it->name, "a nam")', 0),
        ("$cpu", 3),
        ("'a' + 1", 98),
        ("0x10 + 010 + 1UL", 25),
    ],
)
def test_values(vmlinux: Path, text: str, value: object) -> None:
    assert evaluate(vmlinux, text) == value


def test_a_parameter_on_the_stack(vmlinux: Path) -> None:
    assert evaluate(vmlinux, "seventh", "stacked") == 77


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nothing_like_it", "no variable or enumerator nothing_like_it; the function has it, count, small"),
        ("it->none", "it->none: struct item has no member none"),
        ("count->flags", "a value of type unsigned int has no members, such as flags"),
        ("*count", "a value of type unsigned int is not a pointer"),
        ("it->inner", "a value of type struct inner is not a number or a string"),
        ("nothing(1)", "it calls nothing(), which only GDB can"),
        ("it->call()", "it calls a function, which only GDB can"),
        ('it->name == "x"', "a string can only be compared"),
        ("count = 3", "is not part of a C expression"),
        ("count +", "it ends too early"),
        ("(struct none *)it", "does not define struct none"),
        ("$comm", "only GDB knows $comm"),
        ("1 + it", "write the pointer first"),
    ],
)
def test_what_cannot_be_compiled_is_named(vmlinux: Path, text: str, why: str) -> None:
    with pytest.raises(NotCompiledError) as raised:
        evaluate(vmlinux, text)
    assert why in raised.value.message


@pytest.mark.parametrize("text", ['$comm == "cat"', '"cat" == $comm', '($comm) == ("cat")'])
def test_the_name_of_the_task_is_compared_as_a_string(text: str) -> None:
    same = syntax.parse('$_streq($comm, "cat")')
    assert syntax.parse(text) == same
    assert syntax.parse(text.replace("==", "!=")) == syntax.Unary("!", same)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("no_such_function", "has a function no_such_function, or it is inlined everywhere"),
        ("copied", "has a function copied, or it is inlined everywhere"),
        ("main.c:7", "the DWARF has no code for line 7 of main.c"),
        ("*traced + 4", "is not the name of a function"),
    ],
)
def test_places_that_cannot_be_compiled(vmlinux: Path, where: str, why: str) -> None:
    with pytest.raises(NotCompiledError) as raised:
        compiled(Wanted((Probe(where),)), vmlinux, X86_64, 0)
    assert why in raised.value.message


def test_a_condition_drops_a_hit(vmlinux: Path) -> None:
    for condition, holds in (("count == 7 && small < 0", True), ("count == 7 && small > 0", False)):
        found = compiled(Wanted((Probe("traced", ("count",)),), when=condition), vmlinux, X86_64, 0)
        if holds:
            assert run(found, found.places[0].code, REGISTERS, memory(vmlinux)) == {0: 7}
        else:
            with pytest.raises(Filtered):
                run(found, found.places[0].code, REGISTERS, memory(vmlinux))


def test_the_slide_moves_code_and_variables(vmlinux: Path) -> None:
    slide = 0x200000
    found = compiled(Wanted((Probe("traced", ("level",)),), ret=True), vmlinux, X86_64, slide)
    (place,) = found.places
    (at,) = symbols.addresses(vmlinux, "traced")
    assert place.address == at + slide
    assert place.ranges[0][0] == at + slide
    (level,) = symbols.addresses(vmlinux, "level")
    assert run(found, place.code, REGISTERS, {level + slide: bytes([9, 0, 0, 0])}) == {0: 9}


@pytest.mark.parametrize(
    ("where", "result"),
    [
        ("traced", Shape("signed", 4)),
        ("colored", Shape("signed", 4)),
        ("_start", None),
        ("by_value", None),
    ],
)
def test_results(vmlinux: Path, where: str, result: Shape | None) -> None:
    found = compiled(Wanted((Probe(where),), ret=True), vmlinux, X86_64, 0)
    assert found.results == (result,)
    assert found.places[0].ranges  # also for the time that a call takes
    assert found.notes == (
        () if result else (f"{where} returns no value in a register: its hits have no return value",)
    )


def test_a_function_that_ends_with_a_jump_returns_where_that_one_does(vmlinux: Path) -> None:
    found = compiled(Wanted((Probe("ends_elsewhere"),), ret=True), vmlinux, X86_64, 0x1000)
    ((own, _), (traced, end)) = found.places[0].ranges
    (at,) = symbols.addresses(vmlinux, "ends_elsewhere")
    ((begin, size),) = symbols.sized(vmlinux, "traced")
    assert (own, traced, end) == (at + 0x1000, begin + 0x1000, begin + size + 0x1000)


def test_a_vmlinux_without_dwarf(tmp_path: Path) -> None:
    made = tmp_path / "vmlinux"
    process.run(
        ["gcc", "-nostdlib", "-static", "-x", "c", "-", "-o", made],
        stdin=b"void _start(void) {}",
        deadline=Deadline.after(60),
    )
    with pytest.raises(NotCompiledError, match=r"has no DWARF, or has it in \.dwo files"):
        compiled(Wanted((Probe("_start"),)), made, X86_64, 0)


def test_a_vmlinux_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        compiled(Wanted((Probe("f"),)), tmp_path / "none", X86_64, 0)
