"""Parses the C expressions that a collector can compile: no assignments, no calls of functions."""

from __future__ import annotations

import ast
import re
from typing import TypeAlias

import msgspec

from vmdebug.errors import UsageError


class NotCompiledError(UsageError):
    """An expression or a place that cannot be compiled; GDB may be able to evaluate it."""


class Number(msgspec.Struct, frozen=True):
    """A number or a character; `unsigned` and `long` are those of its suffix."""

    value: int
    unsigned: bool = False
    long: bool = False


class Text(msgspec.Struct, frozen=True):
    """A string."""

    value: bytes


class Name(msgspec.Struct, frozen=True):
    """A variable, an enumerator, or a word that begins with $."""

    name: str


class TypeName(msgspec.Struct, frozen=True):
    """A type: its words without qualifiers, and how many pointers lead to it."""

    words: tuple[str, ...]
    pointers: int = 0


class Unary(msgspec.Struct, frozen=True):
    """An operator before its operand."""

    operator: str
    operand: Node


class Binary(msgspec.Struct, frozen=True):
    """An operator between its operands."""

    operator: str
    left: Node
    right: Node


class Choice(msgspec.Struct, frozen=True):
    """`condition ? yes : no`."""

    condition: Node
    yes: Node
    no: Node


class Member(msgspec.Struct, frozen=True):
    """`of.name`, or `of->name` if `arrow`."""

    of: Node
    name: str
    arrow: bool


class Index(msgspec.Struct, frozen=True):
    """`of[at]`."""

    of: Node
    at: Node


class Cast(msgspec.Struct, frozen=True):
    """`(kind)operand`."""

    kind: TypeName
    operand: Node


class SizeOf(msgspec.Struct, frozen=True):
    """`sizeof(kind)`."""

    kind: TypeName


class ContainerOf(msgspec.Struct, frozen=True):
    """`container_of(pointer, kind, member)`; `member` may be a path."""

    pointer: Node
    kind: TypeName
    member: str


class SameString(msgspec.Struct, frozen=True):
    """`$_streq(of, "text")`, GDB's function."""

    of: Node
    text: bytes


Node: TypeAlias = (
    Number | Text | Name | Unary | Binary | Choice | Member | Index | Cast | SizeOf | ContainerOf | SameString
)

_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*)|(?P<name>[$A-Za-z_]\w*)"
    r"|(?P<char>'(?:\\.[0-7]*|[^'\\])')|(?P<text>\"(?:\\.|[^\"\\])*\")"
    r"|(?P<sign>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:()\[\].,]))"
)

_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", ">", "<=", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
"""The binary operators, from the lowest precedence to the highest."""

_QUALIFIERS = frozenset({"const", "volatile", "restrict"})
_TAGS = frozenset({"struct", "union", "enum"})
_BASIC = frozenset({"void", "char", "short", "int", "long", "signed", "unsigned", "_Bool", "float", "double"})


def parse(text: str, is_type: frozenset[str] | set[str] = frozenset()) -> Node:
    """Return an expression.

    Args:
        text: The expression.
        is_type: The names of the typedefs; without them, a cast looks like an expression in parentheses.

    Raises:
        NotCompiledError: it is not a C expression, or has a part that is not supported.
    """
    return _Parser(text, is_type).whole()


def names(text: str) -> set[str]:
    """Return the names in an expression, up to the first part that is not C."""
    return set(re.findall(r"(?<![\w$])[A-Za-z_]\w*", text))


class _Parser:
    def __init__(self, text: str, is_type: frozenset[str] | set[str]) -> None:
        self._text = text
        self._is_type = is_type
        self._tokens = self._split()
        self._at = 0

    def _split(self) -> list[tuple[str, str]]:
        found, at, text = [], 0, self._text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(f"{text[at:].strip()!r} is not part of a C expression")
            found.append((match.lastgroup or "", match[match.lastgroup or 0]))
            at = match.end()
        return [*found, ("end", "")]

    def _error(self, why: str) -> NotCompiledError:
        return NotCompiledError(f"{self._text}: {why}")

    def _look(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def _next(self) -> tuple[str, str]:
        token = self._look()
        self._at += 1
        return token

    def _accept(self, *signs: str) -> str:
        kind, text = self._look()
        return self._next()[1] if kind == "sign" and text in signs else ""

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"{sign!r} is missing before {self._look()[1] or 'its end'!r}")

    def whole(self) -> Node:
        node = self._choice()
        if self._look()[0] != "end":
            raise self._error(f"{self._look()[1]!r} is out of place")
        return node

    def _choice(self) -> Node:
        condition = self._binary(0)
        if not self._accept("?"):
            return condition
        yes = self._choice()
        self._expect(":")
        return Choice(condition, yes, self._choice())

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while operator := self._accept(*_LEVELS[level]):
            node = _joined(operator, node, self._binary(level + 1))
        return node

    def _unary(self) -> Node:
        operator = self._accept("-", "+", "~", "!", "*", "&")
        if operator:
            return Unary(operator, self._unary())
        if self._look() == ("name", "sizeof"):
            self._next()
            self._expect("(")
            size = SizeOf(self._type())
            self._expect(")")
            return size
        if self._look() == ("sign", "(") and self._begins_type(self._look(1)):
            self._next()
            kind = self._type()
            self._expect(")")
            return Cast(kind, self._unary())
        return self._postfix()

    def _begins_type(self, token: tuple[str, str]) -> bool:
        kind, text = token
        known = _TAGS | _BASIC | _QUALIFIERS
        return kind == "name" and (text in known or text in self._is_type)

    def _type(self) -> TypeName:
        words: list[str] = []
        while self._look()[0] == "name":
            word = self._next()[1]
            words += [] if word in _QUALIFIERS else [word]
        if not words:
            raise self._error(f"{self._look()[1]!r} is not a type")
        pointers = 0
        while True:
            if self._accept("*"):
                pointers += 1
            elif self._look()[0] == "name" and self._look()[1] in _QUALIFIERS:
                self._next()
            else:
                return TypeName(tuple(words), pointers)

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            if sign := self._accept("->", "."):
                kind, name = self._next()
                if kind != "name":
                    raise self._error(f"the name of a member is missing after {sign!r}")
                node = Member(node, name, sign == "->")
            elif self._accept("["):
                node = Index(node, self._choice())
                self._expect("]")
            elif self._look() == ("sign", "("):
                called = f"{node.name}()" if isinstance(node, Name) else "a function"
                raise self._error(f"it calls {called}, which only GDB can do")
            else:
                return node

    def _primary(self) -> Node:
        kind, text = self._next()
        if kind == "number":
            digits = text.rstrip("uUlL")
            suffix = text[len(digits) :].lower()
            octal = len(digits) > 1 and digits.isdigit() and digits.startswith("0")
            return Number(int(digits, 8 if octal else 0), "u" in suffix, "l" in suffix)
        if kind == "char":
            return Number(ord(ast.literal_eval(text)))
        if kind == "text":
            return Text(str(ast.literal_eval(text)).encode())
        if kind == "name" and self._look() == ("sign", "(") and text in ("container_of", "$_streq"):
            return self._function(text)
        if kind == "name":
            return Name(text)
        if (kind, text) == ("sign", "("):
            node = self._choice()
            self._expect(")")
            return node
        raise self._error(f"{text!r} is out of place" if text else "it ends too early")

    def _function(self, name: str) -> Node:
        self._expect("(")
        first = self._choice()
        self._expect(",")
        if name == "$_streq":
            second = self._choice()
            self._expect(")")
            if not isinstance(second, Text):
                raise self._error("$_streq needs a string in quotes to compare with")
            return SameString(first, second.value)
        kind = self._type()
        self._expect(",")
        member = [self._next()[1]]
        while self._accept("."):
            member.append(self._next()[1])
        self._expect(")")
        return ContainerOf(first, kind, ".".join(member))


def _joined(operator: str, left: Node, right: Node) -> Node:
    """Return an operator between its operands; `$comm == "text"` compares the strings."""
    if isinstance(left, Text):
        left, right = right, left
    if operator not in ("==", "!=") or left != Name("$comm") or not isinstance(right, Text):
        return Binary(operator, left, right)
    same = SameString(left, right.value)
    return same if operator == "==" else Unary("!", same)
