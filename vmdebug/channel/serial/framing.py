r"""The protocol of `exec` on the serial line: the lines to type, and the patterns of the answers; pure text.

The line typed at the prompt starts a helper: a shell that reads lines from the console and evaluates
them. Lines for the helper may be long, bypass line editing and history, and are answered::

    host                                    guest
    sh -c '_a=TOKEN;…while read…'   →
                                        ←   _TOKEN:r.  0022       ready; the umask
    PREPARE, _c='COMMAND', run          →
                                        ←   _TOKEN:o.  base64     standard output, if there is any
                                        ←   _TOKEN:e5.oh^no       standard error, if there is any; short form
                                        ←   _TOKEN:s0oe.          exit status; the outputs that exist
    exit                                →
                                        ←   _TOKEN:z.             files are removed, the helper exits

The protocol works on a console that other programs and the kernel write to:

- Answers are unambiguous. TOKEN is typed only after `_a=`, so the terminal's echo never contains
  `_TOKEN:`, and base64 uses none of `_`, `.` and `:`.
- Kernel messages may start between any two bytes, but stay in one piece. `messages.MessageFilter` removes
  them.
- Other output within the data is detected: gzip has a checksum, and a short output is sent with its
  length. vmdebug then requests blocks (`BLOCKS`) with a digest each, and splits blocks that fail again.

A short output is sent unencoded by the shell's own commands, which takes half the time. Blanks are sent as
`^`, so that a kernel message quoted in the output is not filtered out. An output with a NUL, and any
output of a shell that cannot read up to a NUL (dash), is sent as base64.

The terminal's settings are not changed, so nothing has to be restored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

LINE = 480
"""Bytes of a typed line; the smallest line editor of busybox takes 512."""

GROUP = 2000
"""Bytes to type before waiting for an acknowledgement: half of N_TTY_BUF_SIZE, drivers/tty/n_tty.c."""

ARGUMENT = 100_000
"""Bytes of a command that is passed as one argument; the kernel's limit is MAX_ARG_STRLEN, 131072."""

INTERRUPT = "\x03"
"""^C."""

KILL_LINE = "\x05\x15"
"""^E^U: discards text that was left on the line, with and without a line editor."""

SHORT = 500
"""Characters of the longest output in the short form: the shell reads it character by character."""

DIRECTORIES = "${TMPDIR:-/tmp} /dev/shm /run"
"""Directories for the helper's files, as words of the guest's shell; the first writable one is used."""


def token() -> str:
    """Return a random name for one run, which no output contains."""
    return secrets.token_hex(5)


def start(token: str) -> str:
    """Return the line that starts the helper, for the prompt of any shell."""
    return (
        f"{KILL_LINE} sh -c '_a={token};f(){{ echo _$_a:r.;umask;}};vmd=f;f;"
        'while read -r _l;do eval "$_l";done\'\n'
    )


# Only this user can read the files; the trap removes them however the helper ends. `probe_line` uses $vmd.
PREPARE = (
    '_k=_$_a: vmd="echo ${_k}t";umask 77\n'
    "trap 'rm -f \"$_d\".?;echo ${_k}z.' 0;trap exit 1 2\n"
    f'for _d in {DIRECTORIES};do _d=$_d/vmdebug-$_a;{{ :;}}>"$_d.o">"$_d.e"&&break;done'
    # Keep reading, so that the outer shell does not get the lines that follow.
    "||{ echo ${_k}d.;while read -r _l;do :;done;}\n"
    'O(){ _n=;for _f in o e;do [ -s "$_d.$_f" ]&&{ _n=$_n$_f;P||{ echo $_k$_f.;gzip -1<"$_d.$_f"|base64;};};'
    "done;echo ${_k}s$_s$_n.;}\n"
    # `read` returns 1 at the end of the file, and 0 if more is left.
    f'P(){{ IFS= read -rd "" -n{SHORT} _x 2>/dev/null<"$_d.$_f";[ $? = 1 ]||return;_y=${{#_x}}.;'
    'case $_x in *[_[^]*)return 1;esac;while case $_x in *" "*);;*)false;esac;do '
    '_y=$_y${_x%%" "*}^;_x=${_x#*" "};done;echo "$_k$_f$_y$_x";}\n'
)
"""The helper's definitions, one on each line."""


def run(umask: str) -> str:
    """Return the line that runs the command in `$_c`, and sends its outputs and exit status.

    It is a pipeline. The left side prints its process group and runs the command in a session of its own,
    see setsid(2), where ^C does not reach it and it cannot read the terminal. The right side waits for the
    exit status. On ^C it ends the command, first with SIGTERM. It is not a background job, because those
    ignore SIGINT, and a shell cannot reset a signal that was ignored when it started.

    A ^C also interrupts `read`, and sets `$_i`; then `cat` reads the rest, which the next ^C ends. The shell
    must not call `read` again: in busybox 1.38, the first `read` after an interrupted one never returns.

    Args:
        umask: The umask of the command, as `umask` printed it.
    """
    return (
        f'{{ trap : 2;(read _g _y</proc/self/stat;echo $_g;umask {umask};exec setsid sh -c "$_c" '
        '</dev/null >"$_d.o" 2>"$_d.e");echo $?;}|'
        "{ trap '' 2;read _g;_z=15;trap 'kill -$_z -$_g $_g;_z=9;_i=1' 2;read _s;"
        "while [ $_i ];do _i=;_s=$_s$(cat);done;trap - 2;[ $_s ]||echo ${_k}x.;exit ${_s:-1};};_s=$?;O\n"
    )


SEND_AGAIN = "O\n"
LEAVE = "exit\n"

LEAVE_LATER = "${vmd+exit}\n"
"""Ends the helper when it reads this after vmdebug has stopped waiting; has no effect in another shell."""

NO_SETSID = re.compile(rb"exec: .*setsid: not found")
"""The shell's message, with status 127, if the guest has no setsid; see `run`."""

BLOCKS = (
    'B(){ dd if="$_d.$1" of="$_d.b" skip=$2 bs=$3 count=1 2>/dev/null;set -- $1 $2 $3 $(md5sum<"$_d.b");'
    'echo ${_k}b$1.$2.$3.$4.;base64<"$_d.b";echo ${_k}e.;}\n'
)
"""Defines B, which sends a block, given its file, index and size."""

LARGEST = 16384
SMALLEST = 256
"""Bytes of a block."""

SPLIT = 4
"""Number of parts into which a damaged block is split."""


ASK_SIZES = (
    "_m=;for _p in base64 dd md5sum wc;do command -v $_p>/dev/null||_m=$_m-$_p;done;"
    'echo ${_k}n$(wc -c<"$_d.o").$(wc -c<"$_d.e").$_m.\n'
)
"""Requests the sizes of both outputs, and the programs missing for `BLOCKS`."""


def ask_blocks(blocks: Sequence[Block]) -> str:
    """Return the line that requests blocks, and the answer that marks their end."""
    calls = ";".join(f"B {block.file} {block.index} {block.size}" for block in blocks)
    return f"{calls};echo ${{_k}}n.\n"


def probe_line(token: str, number: int) -> str:
    """Return a line to type when no answer comes.

    An idle helper answers `_TOKEN:t NUMBER`; its last answer was then lost. If the helper has
    ended, the shell that reads the line answers `_TOKEN:: NUMBER`.
    """
    return f'${{vmd-echo _{token}""::}} {number}\n'


def question(token: str, number: int, *, helper: bool, before: str = "") -> str:
    """Return the line that any shell answers with `answer`.

    It has no quotes: a shell that loses a part of it, when it sets up the terminal, would wait for the
    closing quote, and take every repetition for the text inside.

    Args:
        token: Name of this question.
        number: Number of this repetition.
        helper: Whether a helper may read the line; it then must not give this answer.
        before: A command to run before the answer; it must print nothing and work in any shell.
    """
    first = f"{before};" if before else ""
    words = f"${{vmd-echo _{token}\\:}}" if helper else f"echo _{token}\\:"
    return f"{KILL_LINE} {first}{words}{number}.\n"


def answer(token: str, number: int) -> bytes:
    """Return the answer of a shell to `question`."""
    return f"_{token}:{number}.".encode()


def remove(token: str) -> str:
    """Return the line, for a prompt, that removes the files of a helper that was killed."""
    return f"{KILL_LINE} for d in {DIRECTORIES};do rm -f $d/vmdebug-{token}.?;done\n"


def with_input(line: bytes, stdin: bytes) -> bytes:
    """Return a command that contains its standard input as a here-document.

    Args:
        line: The command.
        stdin: Its input.
    """
    # base64 has no underscore, so none of its lines ends the here-document.
    return b"base64 -d <<'_' | {\n" + base64.encodebytes(stdin) + b"_\n" + line + b"\n}"


@dataclass(frozen=True, slots=True)
class Group:
    """Lines to type together.

    Args:
        lines: The lines.
        length: The length of `$_c` after these lines, for `ACKNOWLEDGE`.
    """

    lines: str
    length: int


def upload(command: bytes) -> list[Group]:
    r"""Return the lines that assign a command to the helper's `$_c`; each group but the last is acknowledged.

    Args:
        command: The command, from `vmdebug.channel.shell.command_line`.
    """
    plain = _PLAIN.fullmatch(command) is not None
    # Each byte that is special to a terminal, a quoted string or %b is sent as \0ooo.
    text = (command if plain else _SPECIAL.sub(_octal, command)).decode("ascii")
    pieces = [text[at : at + LINE] for at in range(0, len(text), LINE)]
    lines = [f"_c='{pieces[0]}'\n", *(f"_c=$_c'{piece}'\n" for piece in pieces[1:])]
    full = GROUP // (LINE + len("_c=$_c''\n"))
    groups: list[Group] = []
    while len(lines) > full:
        typed, lines = lines[:full], lines[full:]
        groups.append(Group("".join(typed), (len(groups) + 1) * full * LINE))
    if not plain:
        # $(…) removes a newline at the end; the x protects it.
        lines.append('_c=$(printf %bx "$_c");_c=${_c%x}\n')
    if len(command) > ARGUMENT:
        lines.append('printf %s "$_c">"$_d.c";_c=". \'$_d.c\'"\n')
    return [*groups, Group("".join(lines), len(text))]


_PLAIN = re.compile(rb"[\x20-\x26\x28-\x7e]*")
_SPECIAL = re.compile(rb"[^\x20-\x26\x28-\x5b\x5d-\x7e]")


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\0%03o" % match.group()[0]


ACKNOWLEDGE = "echo ${_k}n${#_c}.\n"
"""Requests the length of `$_c`."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The patterns of a helper's answers."""

    ready: re.Pattern[bytes]
    length: re.Pattern[bytes]
    sizes: re.Pattern[bytes]
    status: re.Pattern[bytes]
    end_of_blocks: re.Pattern[bytes]
    gone: re.Pattern[bytes]
    lost: re.Pattern[bytes]
    idle: re.Pattern[bytes]
    output: re.Pattern[bytes]
    short: re.Pattern[bytes]
    block: re.Pattern[bytes]
    killed: bytes
    nowhere: bytes

    @classmethod
    def of(cls, token: str) -> Answers:
        """Return the patterns for one run."""
        key = re.escape(f"_{token}:".encode())
        return cls(
            ready=re.compile(key + rb"r\.\s+(0?[0-7]{3,4})\s"),
            length=re.compile(key + rb"n(\d+)\."),
            sizes=re.compile(key + rb"n(\d*)\.(\d*)\.((?:-\w+)*)\."),
            status=re.compile(key + rb"s(\d{1,3})(o?e?)\."),
            end_of_blocks=re.compile(key + rb"n\."),
            gone=re.compile(key + rb"z\.\r?\n"),
            lost=re.compile(key + rb": (\d+)"),
            idle=re.compile(key + rb"t (\d+)"),
            output=re.compile(key + rb"([oe])\.([^_]*)"),
            short=re.compile(key + rb"([oe])(\d+)\.([^_]*)"),
            block=re.compile(key + rb"b([oe])\.(\d+)\.(\d+)\.([0-9a-f]*)\.([^_]*)" + key + rb"e\."),
            killed=f"_{token}:x.".encode(),
            nowhere=f"_{token}:d.".encode(),
        )


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """A part of an output: the `index`-th of `size` bytes of file `o` or `e`."""

    file: str
    index: int
    size: int

    def parts(self, whole: int) -> list[Block]:
        """Return its smaller blocks, in a file of `whole` bytes; a block of the smallest size stays."""
        if self.size <= SMALLEST:
            return [self]
        size = self.size // SPLIT
        first = self.index * SPLIT
        return [Block(self.file, part, size) for part in range(first, first + SPLIT) if part * size < whole]


def blocks_of(file: str, size: int) -> list[Block]:
    """Return the blocks of an output of `size` bytes."""
    return [Block(file, index, LARGEST) for index in range(-(-size // LARGEST))]


def unpack(sent: bytes) -> bytes | None:
    """Return the data that was sent as `gzip | base64`; None if it is damaged."""
    packed = _unbase64(sent)
    if packed is None:
        return None
    # 31 selects the gzip format; zlib verifies its checksum.
    stream = zlib.decompressobj(31)
    try:
        data = stream.decompress(packed)
    except zlib.error:
        return None
    return data if stream.eof and not stream.unused_data else None


def unpack_short(sent: bytes, length: int) -> bytes | None:
    """Return an output that was sent in the short form; None if it is damaged.

    Args:
        sent: The received bytes, with the newline after them.
        length: Its length as the shell counts it: in bytes, or in characters of UTF-8.
    """
    data = sent.replace(b"\r\n", b"\n").replace(b"^", b" ").removesuffix(b"\n")
    lengths = (len(data), len(data.decode(errors="replace")))
    return data if length in lengths else None


def unpack_block(sent: bytes, digest: bytes) -> bytes | None:
    """Return a block that was sent with its MD5 digest in hex; None if it is damaged."""
    data = _unbase64(sent)
    if data is None:
        return None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return data if found.encode() == digest else None


def _unbase64(sent: bytes) -> bytes | None:
    try:
        return base64.b64decode(b"".join(sent.split()), validate=True)
    except binascii.Error:
        return None
