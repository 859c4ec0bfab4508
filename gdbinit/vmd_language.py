"""Sets GDB's language to C while GDB loads a vmlinux, so that GDB does not look up `main`.

With `language auto`, GDB takes its first language from the file of `main`. For the first lookup of a symbol
by name it sorts all names in its index, which takes a third of the time of an attach. An attach needs no such
lookup. So vmdebug sets the language before GDB loads the vmlinux, and `auto` again before the user's first
command.
"""

from __future__ import annotations

import gdb

# The functions import other modules when they need them, so that `hold` does not delay GDB's start.

_held = False


def adapt() -> None:
    """Set `language auto` if the user's gdbinit has chosen another language than C, and say so."""
    chosen = gdb.parameter("language")
    if chosen not in ("auto", "c"):
        import vmd_batch  # noqa: PLC0415

        gdb.execute("set language auto", to_string=True)
        vmd_batch.say(f"set language auto: with {chosen} the kernel's GDB scripts fail")


def hold() -> None:
    """Set the language to C, as `auto` does for a kernel, unless the user's gdbinit has already chosen C.

    GDB has read the gdbinit before it calls this.
    """
    global _held  # noqa: PLW0603 - one GDB has one language
    adapt()
    _held = gdb.parameter("language") == "auto"
    if _held:
        gdb.execute("set language c", to_string=True)


def restore_later() -> None:
    """Set `language auto` at the first stop in code with line information, or for the user's first command.

    Otherwise GDB would warn at a stop in code of another language.
    """
    import vmd_later  # noqa: PLC0415

    if _held:
        gdb.events.stop.connect(_stopped)
        vmd_later.add(_restore)


def _stopped(_event: gdb.StopEvent) -> None:
    import vmd_guest  # noqa: PLC0415

    # Elsewhere, `auto` would make GDB look up `main` after all; so would a `gdb.Frame`.
    pc = vmd_guest.register("pc")
    if pc is not None and gdb.find_pc_line(pc).symtab is not None:
        _restore()


def _restore() -> None:
    global _held  # noqa: PLW0603 - as above
    if _held:
        _held = False
        gdb.events.stop.disconnect(_stopped)
        gdb.execute("set language auto", to_string=True)
