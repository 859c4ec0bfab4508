r"""What `exec` types into the guest's shell and how it reads the answers; pure text.

A command is typed at the prompt that starts an agent: a shell that reads its
lines from the console and evaluates them. Lines that the agent gets may be long,
are not edited by any line editor, land in no history, and are answered::

    host                                    guest
    sh -c '_a=TOKEN;…while read…'   →
                                        ←   _TOKEN:r.  0022       ready, and the umask
    PREPARE, _c='COMMAND', run          →
                                        ←   _TOKEN:o.  base64     standard output, if any
                                        ←   _TOKEN:e5.oh^no       standard error, if any, a short one
                                        ←   _TOKEN:s0oe.          status, and which outputs there were
    exit                                →
                                        ←   _TOKEN:z.             files removed, agent gone

Three things carry it through a busy console:

- No answer can be mistaken: TOKEN is typed only behind `_a=`, so an echo never
  shows `_TOKEN:`, and `_`, `.` and `:` are not in base64's alphabet.
- Kernel messages land between any two bytes, but come whole, from their time
  stamp to their newline, which `noise.Denoiser` takes out.
- What else lands in the data shows, because gzip checks its own content, and a short
  output is told with its length; then blocks are asked for (`BLOCKS`), each with its
  digest, smaller ones where it fails.

A short output is sent as it is, by what the shell has in itself: that takes half the time.
Its blanks are `^` meanwhile, so that no kernel message that a program quotes is taken for one.
A shell that cannot read up to a NUL (dash), or an output with a NUL, takes the longer way.

The terminal's settings are never touched, so nothing has to be put back.
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
"""Bytes of a typed line: below the smallest line editor of a busybox, 512."""

GROUP = 2000
"""Bytes typed before an acknowledgement: half of N_TTY_BUF_SIZE, drivers/tty/n_tty.c."""

ARGUMENT = 100_000
"""Bytes of a command that are still one argument; the limit is MAX_ARG_STRLEN, 131072."""

INTERRUPT = "\x03"
"""^C."""

KILL_LINE = "\x05\x15"
"""^E^U: drops what somebody left on the line, in a line editor and without one."""

SHORT = 500
"""Characters of an output that the shell reads by itself, which it does one by one."""

DIRECTORIES = "${TMPDIR:-/tmp} /dev/shm /run"
"""Where the agent's files go, words of the guest's shell: the first that can be written."""


def token() -> str:
    """Return a name for one run that no output contains."""
    return secrets.token_hex(5)


def start(token: str) -> str:
    """Return the line that starts the agent, typed at a prompt of any kind of shell."""
    return (
        f"{KILL_LINE} sh -c '_a={token};f(){{ echo _$_a:r.;umask;}};vmd=f;f;"
        'while read -r _l;do eval "$_l";done\'\n'
    )


# The files are ours alone; whatever ends the agent removes them; `are_you_there` uses $vmd.
PREPARE = (
    '_k=_$_a: vmd="echo ${_k}t";umask 77\n'
    "trap 'rm -f \"$_d\".?;echo ${_k}z.' 0;trap exit 1 2\n"
    f'for _d in {DIRECTORIES};do _d=$_d/vmdebug-$_a;{{ :;}}>"$_d.o">"$_d.e"&&break;done'
    # It stays, so that the shell behind it gets none of the lines that follow.
    "||{ echo ${_k}d.;while read -r _l;do :;done;}\n"
    'O(){ _n=;for _f in o e;do [ -s "$_d.$_f" ]&&{ _n=$_n$_f;P||{ echo $_k$_f.;gzip -1<"$_d.$_f"|base64;};};'
    "done;echo ${_k}s$_s$_n.;}\n"
    # Of read's statuses 1 is the end of the file, 0 that something was left.
    f'P(){{ IFS= read -rd "" -n{SHORT} _x 2>/dev/null<"$_d.$_f";[ $? = 1 ]||return;_y=${{#_x}}.;'
    'case $_x in *[_[^]*)return 1;esac;while case $_x in *" "*);;*)false;esac;do '
    '_y=$_y${_x%%" "*}^;_x=${_x#*" "};done;echo "$_k$_f$_y$_x";}\n'
)
"""The agent's definitions, a line each."""


def run(umask: str) -> str:
    """Return the line that runs the command in `$_c` and sends what came of it.

    On the left the command, in a session of its own, see setsid(2): no ^C of ours reaches it,
    and it cannot read our terminal. Its process group is told first. On the right who waits
    for its status, whom a ^C has end the command, gently first. It is no background job:
    those ignore SIGINT, and a shell cannot stop ignoring what it was born ignoring.

    A ^C ends the read as well and sets `$_i`; what is left is read by `cat`, which the next ^C ends. The
    shell must not read a second time: that of busybox 1.38 never returns, once a trap has ended one.

    Args:
        umask: The command's, as `umask` printed it.
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
"""Ends an agent that comes to read it when nobody waits any more; nothing to another shell."""

NO_SETSID = re.compile(rb"exec: .*setsid: not found")
"""What a shell says to `run` where there is no setsid, with status 127."""

BLOCKS = (
    'B(){ dd if="$_d.$1" of="$_d.b" skip=$2 bs=$3 count=1 2>/dev/null;set -- $1 $2 $3 $(md5sum<"$_d.b");'
    'echo ${_k}b$1.$2.$3.$4.;base64<"$_d.b";echo ${_k}e.;}\n'
)
"""Defines B: sends a block, given its file, index and size."""

LARGEST = 16384
SMALLEST = 256
"""Bytes of a block."""

SPLIT = 4
"""Into how many a block is split that did not come through."""


ASK_SIZES = (
    "_m=;for _p in base64 dd md5sum wc;do command -v $_p>/dev/null||_m=$_m-$_p;done;"
    'echo ${_k}n$(wc -c<"$_d.o").$(wc -c<"$_d.e").$_m.\n'
)
"""Asks how many bytes both outputs have, and which programs `BLOCKS` lacks."""


def ask_blocks(blocks: Sequence[Block]) -> str:
    """Return the line that asks for blocks, followed by the answer that ends them."""
    calls = ";".join(f"B {block.file} {block.index} {block.size}" for block in blocks)
    return f"{calls};echo ${{_k}}n.\n"


def are_you_there(token: str, number: int) -> str:
    """Return a line to type while it is quiet.

    An agent with nothing to do says `_TOKEN:t NUMBER`: then its last answer was lost.
    Where the agent has gone, the shell that reads the line says `_TOKEN:: NUMBER`.
    """
    return f'${{vmd-echo _{token}""::}} {number}\n'


def question(token: str, number: int, *, agents: bool, before: str = "") -> str:
    """Return the line that any shell answers with `answer`.

    Args:
        token: Of this question.
        number: How many times it has been asked.
        agents: Whether an agent may read it, who is to answer something else.
        before: A command that any shell takes and that prints nothing; run before the answer.
    """
    first = f"{before};" if before else ""
    words = f'${{vmd-echo _{token}"":}}' if agents else f'echo _{token}"":'
    return f"{KILL_LINE} {first}{words}{number}.\n"


def answer(token: str, number: int) -> bytes:
    """Return what a shell answers to `question`."""
    return f"_{token}:{number}.".encode()


def remove(token: str) -> str:
    """Return the line, for a prompt, that removes the files of an agent that could not."""
    return f"{KILL_LINE} for d in {DIRECTORIES};do rm -f $d/vmdebug-{token}.?;done\n"


def with_input(line: bytes, stdin: bytes) -> bytes:
    """Return a command that brings its own standard input.

    Args:
        line: The command.
        stdin: Its input.
    """
    # No line of base64 is an underscore alone.
    return b"base64 -d <<'_' | {\n" + base64.encodebytes(stdin) + b"_\n" + line + b"\n}"


@dataclass(frozen=True, slots=True)
class Group:
    """Lines to type at once.

    Args:
        lines: The lines.
        length: How long `$_c` is after them, for `ACKNOWLEDGE`.
    """

    lines: str
    length: int


def upload(command: bytes) -> list[Group]:
    r"""Return what puts a command into the agent's `$_c`; all groups but the last are to be acknowledged.

    Args:
        command: What `vmdebug.channel.shell.command_line` returned.
    """
    plain = _PLAIN.fullmatch(command) is not None
    # Each byte that a terminal, a quoted string or %b would take for its own goes as \0ooo.
    text = (command if plain else _SPECIAL.sub(_octal, command)).decode("ascii")
    pieces = [text[at : at + LINE] for at in range(0, len(text), LINE)]
    lines = [f"_c='{pieces[0]}'\n", *(f"_c=$_c'{piece}'\n" for piece in pieces[1:])]
    full = GROUP // (LINE + len("_c=$_c''\n"))
    groups: list[Group] = []
    while len(lines) > full:
        typed, lines = lines[:full], lines[full:]
        groups.append(Group("".join(typed), (len(groups) + 1) * full * LINE))
    if not plain:
        # The x keeps a newline at the end from being cut by $(…).
        lines.append('_c=$(printf %bx "$_c");_c=${_c%x}\n')
    if len(command) > ARGUMENT:
        lines.append('printf %s "$_c">"$_d.c";_c=". \'$_d.c\'"\n')
    return [*groups, Group("".join(lines), len(text))]


_PLAIN = re.compile(rb"[\x20-\x26\x28-\x7e]*")
_SPECIAL = re.compile(rb"[^\x20-\x26\x28-\x5b\x5d-\x7e]")


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\0%03o" % match.group()[0]


ACKNOWLEDGE = "echo ${_k}n${#_c}.\n"
"""Asks for the length of `$_c`."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The patterns of an agent's answers."""

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
        """Return the smaller blocks that make it up, in a file of `whole` bytes; the smallest itself."""
        if self.size <= SMALLEST:
            return [self]
        size = self.size // SPLIT
        first = self.index * SPLIT
        return [Block(self.file, part, size) for part in range(first, first + SPLIT) if part * size < whole]


def blocks_of(file: str, size: int) -> list[Block]:
    """Return the blocks that make up an output of `size` bytes."""
    return [Block(file, index, LARGEST) for index in range(-(-size // LARGEST))]


def unpack(sent: bytes) -> bytes | None:
    """Return what an agent sent as `gzip | base64`; None where it did not come through whole."""
    packed = _unbase64(sent)
    if packed is None:
        return None
    # 31: a gzip stream, whose trailer zlib checks.
    stream = zlib.decompressobj(31)
    try:
        data = stream.decompress(packed)
    except zlib.error:
        return None
    return data if stream.eof and not stream.unused_data else None


def unpack_short(sent: bytes, length: int) -> bytes | None:
    """Return an output that an agent sent as it is; None where it did not come through whole.

    Args:
        sent: What came, with the newline behind it.
        length: How many characters it has; a shell may count those of UTF-8.
    """
    data = sent.replace(b"\r\n", b"\n").replace(b"^", b" ").removesuffix(b"\n")
    lengths = (len(data), len(data.decode(errors="replace")))
    return data if length in lengths else None


def unpack_block(sent: bytes, digest: bytes) -> bytes | None:
    """Return a block that was sent with its MD5 in hex; None where it did not come through whole."""
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
