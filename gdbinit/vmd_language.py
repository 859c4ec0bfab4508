"""GDB's language: one that suits a kernel, and no lookup of `main` when GDB loads a vmlinux.

With `language auto` GDB takes its first language from that of `main`. At the first lookup of a symbol by name
it sorts all names in its index, which takes a third of the time of an attach. An attach needs no such lookup,
so it sets a language while GDB loads the vmlinux, and `auto` again before the user's first command.
"""

from __future__ import annotations

import gdb

# Other modules are imported when they are used: `hold` must not delay GDB.

_held = False


def adapt() -> None:
    """Undo the choice of another language than C, and say so."""
    chosen = gdb.parameter("language")
    if chosen not in ("auto", "c"):
        import vmd_batch  # noqa: PLC0415

        gdb.execute("set language auto", to_string=True)
        vmd_batch.say(f"set language auto: with {chosen} the kernel's GDB scripts fail")


def hold() -> None:
    """Set the language that `auto` becomes for a kernel, unless the user's gdbinit has chosen it.

    GDB reads the gdbinit before.
    """
    global _held  # noqa: PLW0603 - one GDB has one language
    adapt()
    _held = gdb.parameter("language") == "auto"
    if _held:
        gdb.execute("set language c", to_string=True)


def restore_later() -> None:
    """Set `language auto` when the guest stops in code of a known language, at the latest for the user.

    GDB would warn about a stop in code of another language.
    """
    import vmd_later  # noqa: PLC0415

    if _held:
        gdb.events.stop.connect(_stopped)
        vmd_later.add(_restore)


def _stopped(_event: gdb.StopEvent) -> None:
    import vmd_guest  # noqa: PLC0415

    # In other code GDB would look up `main` after all; for a `gdb.Frame`, too.
    pc = vmd_guest.register("pc")
    if pc is not None and gdb.find_pc_line(pc).symtab is not None:
        _restore()


def _restore() -> None:
    global _held  # noqa: PLW0603 - as above
    if _held:
        _held = False
        gdb.events.stop.disconnect(_stopped)
        gdb.execute("set language auto", to_string=True)
