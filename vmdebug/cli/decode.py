"""`vmdebug decode`: adds source lines to the traces in any text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import HostError, UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.text_kernels import Said
    from vmdebug.guest import Kernel

DECODE_SECONDS = 120.0
"""How long it may take to find source lines: half a second for a kernel of 80 MB, longer for larger ones."""

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug decode console.log",
        "journalctl -k -b -1 | vmdebug decode --vmlinux /usr/lib/debug/boot/vmlinux-6.1.0-31-amd64",
        "vmdebug decode report.txt --guest ~/src/linux",
        "vmdebug decode mail.eml --vmlinux vmlinux --modules /lib/modules/6.1.0-31-amd64",
    ),
)
def decode(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE|-", help="A text; by default, and for -, standard input.")
    ] = None,
    *,
    guest: Annotated[
        str | None,
        typer.Option(
            metavar="G", help="Decode with the kernel of this guest.", autocompletion=verb.complete_guest
        ),
    ] = None,
    vmlinux: Annotated[Path | None, typer.Option(metavar="F", help="Decode with this vmlinux.")] = None,
    modules: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory with the kernel's modules, at any depth.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Decode also what is of another build than the vmlinux.")
    ] = False,
) -> None:
    """Add source lines to the kernel traces in a text.

    The text can be a log of any program (dmesg, journalctl, netconsole, a CI system), a mail with
    quotations, or a report of syzkaller. Addresses get file and line, with inlined functions; the
    instructions of `Code:` follow it, with --> before the one that the CPU was at; names of Rust are
    demangled. The rest of the text does not change.

    Without --guest and --vmlinux the kernel is that of a running VM or of an installed debug package, if the
    text names it, or else that of the default guest. If the text names another build than the vmlinux, the
    status is 4.
    """
    from vmdebug.debugger import text_kernels

    if guest is not None and vmlinux is not None:
        raise UsageError("--guest and --vmlinux exclude each other", hint="give one of them")
    text = _read(file)
    boots = text_kernels.boots(text)
    kernel = _kernel(guest, vmlinux, text_kernels.said(text))
    if modules is not None:
        kernel = _with_modules(kernel, modules)
    wanted = _wanted(boots, kernel, force=force)
    with render.step(render.SYMBOLS):
        shown = [_decoded(boot, kernel) if take else boot for boot, take in zip(boots, wanted, strict=True)]
    render.put_bytes("".join(shown).encode(errors="surrogateescape"))


def _read(file: Path | None) -> str:
    from vmdebug.debugger import mail_text

    if file is None and sys.stdin.isatty():
        raise UsageError(
            "there is no text to decode", hint="give a file, or pipe the text: dmesg | vmdebug decode"
        )
    try:
        data = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}", hint="give a text, or - for standard input") from None
    except OSError as error:
        raise HostError(
            f"cannot read {file}: {error.strerror}", hint="give a text that you may read"
        ) from error
    return mail_text.text(data).decode(errors="surrogateescape")


def _kernel(guest: str | None, vmlinux: Path | None, said: tuple[Said, ...]) -> Kernel:
    """Return the kernel to decode with; it has a vmlinux."""
    from vmdebug.cli import at_hand
    from vmdebug.sources.kernels import image

    if vmlinux is not None:
        return image.of_vmlinux(vmlinux)
    found = at_hand.kernel(said) if guest is None else None
    return found or _of_guest(guest)


def _of_guest(guest: str | None) -> Kernel:
    from vmdebug import sources
    from vmdebug.deadline import BUILD_SECONDS, Deadline

    with render.progress() as report:
        wanted = options.given(guest, force=True)
        kernel = sources.resolve(wanted, report=report, deadline=Deadline.after(BUILD_SECONDS)).kernel
    if kernel.vmlinux is None:
        raise UsageError(f"there is no vmlinux of {kernel.origin}", hint="give it: --vmlinux FILE")
    return kernel


def _with_modules(kernel: Kernel, modules: Path) -> Kernel:
    import msgspec

    if not modules.is_dir():
        raise UsageError(f"{modules} is not a directory", hint="give the directory with the .ko files")
    return msgspec.structs.replace(kernel, modules=modules.absolute(), module_symbols=())


def _wanted(boots: list[str], kernel: Kernel, *, force: bool) -> list[bool]:
    """Say for each part of the text whether to decode it: it may be of the vmlinux, or `force` is set.

    Raises:
        MismatchError: all parts are of other builds.
    """
    from vmdebug import kimage
    from vmdebug.debugger import text_kernels
    from vmdebug.errors import MismatchError

    assert kernel.vmlinux is not None  # noqa: S101 - for the type checker
    if not kimage.dwarf(kernel.vmlinux).version:
        render.tell(
            f"note: no source lines: {kernel.vmlinux} has no debugging information; {kimage.WITHOUT_DWARF}"
        )
    ours = kimage.read_vmlinux(kernel.vmlinux)
    named = [text_kernels.said(boot) for boot in boots]
    other = {each: why for said in named for each in said if (why := text_kernels.difference(each, ours))}
    wanted = [not text_kernels.is_other(said, ours) for said in named]
    if boots and not any(wanted) and not force:
        raise MismatchError(
            f"the text is of another kernel than {kernel.vmlinux}: {next(iter(other.values()))}",
            hint="give the vmlinux of that kernel: --vmlinux FILE; --force decodes anyway",
        )
    for each, why in other.items():
        done = "decoded anyway" if force else "not decoded, unless it is in one log with the other"
        render.tell(f"note: the text also has {each}, which is not {kernel.vmlinux}: {why}; {done}")
    if not any(named):
        render.tell(f"note: the text does not say which kernel it is of; decoded with {kernel.vmlinux}")
    return [force or each for each in wanted]


def _decoded(text: str, kernel: Kernel) -> str:
    from vmdebug.deadline import Deadline
    from vmdebug.debugger import decode

    return decode.decode(
        text, kernel, Deadline.after(DECODE_SECONDS), tell=lambda note: render.tell(f"note: {note}")
    )
