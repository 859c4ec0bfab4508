"""Parses QEMU's command-line arguments as QEMU does; pure.

This module parses the user's arguments (`-- ARGS`, `qemu_args`) and those of a NixOS runner script into
frozen values. Other modules use these values, and never search the words.

See `lookup_opt` of QEMU's softmmu/vl.c (system/vl.c since 8.2), util/qemu-option.c and util/keyval.c:

- An option begins with one dash or two. Its name must match exactly, so there is no `-name=argument`.
- A word without a dash, where an option is expected, is a disk image, as if by `-hda`.
- A list is `key=value,key=value`. A comma within a value is doubled. The first value of some options needs no
  key. A key without a value is a flag: `readonly` is `readonly=on`, `noacpi` is `acpi=off`.
- An argument that begins with `{` is JSON. Nested members become dotted keys: `file.filename`.

Files of `-readconfig` are not read; see `unread`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

_WITHOUT_ARGUMENT = frozenset(
    """
    S alt-grab async-teardown audio-help ctrl-grab curses daemonize enable-fips enable-kvm
    enable-sync-profile full-screen h help mem-prealloc no-acpi no-fd-bootchk no-hpet no-kvm
    no-quit no-reboot no-shutdown no-user-config nodefaults nographic nouserconfig old-param
    only-migratable portrait preconfig s sdl semihosting singlestep snapshot usb version
    win2k-hack xen-attach xen-domid-restrict
    """.split()  # noqa: SIM905 - a list of words
)
"""Options that take no argument, in QEMU 5 to 11: those with flags 0 in qemu-options.hx."""

_FIRST_KEY = {
    "M": "type",
    "accel": "accel",
    "audiodev": "driver",
    "blockdev": "driver",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "display": "type",
    "fsdev": "fsdriver",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "name": "guest",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "smp": "cpus",
    "tpmdev": "type",
    "virtfs": "fsdriver",
}
"""The key of the first value of an option's list, if it has none."""

_JSON = frozenset({"audiodev", "blockdev", "compat", "device", "display", "netdev", "object"})
"""Options whose argument may be a JSON object."""

_LISTED = frozenset(
    """
    M accel audiodev boot chardev cpu d device display drive global machine msg netdev nic object
    overcommit rtc smp tpmdev trace vga
    """.split()  # noqa: SIM905 - a list of words
)
"""Options that print a list if the argument contains `help`: `-device help`, `-nic model=help`."""

_PRINTS = frozenset({"h", "help", "version", "audio-help"})

_HELP = frozenset({"help", "?"})

_DISKS = frozenset("blockdev drive fda fdb hda hdb hdc hdd mtdblock pflash sd".split())  # noqa: SIM905 - a list of words
"""Options that attach a disk image, which the guest may write to."""

_FILES = frozenset({"readconfig"})
"""Options that name a file with more options."""


class Option(msgspec.Struct, frozen=True):
    """One option of a QEMU command line.

    Args:
        word: The option as it was written: "--device"; or the path of a bare disk image.
        name: Its name without dashes; "hda" for a bare disk image.
        argument: The word after it; None if the option takes none, or it is missing.
    """

    word: str
    name: str
    argument: str | None = None

    @property
    def properties(self) -> Mapping[str, str]:
        """The keys and values of the argument. If a key occurs twice, the later value counts."""
        if self.argument is None:
            return {}
        if self.name in _JSON and self.argument.startswith("{"):
            return members(self.argument)
        return properties(self.argument, first=_FIRST_KEY.get(self.name))

    @property
    def prints(self) -> bool:
        """Whether QEMU only prints information, without starting a guest: `-version`, `-device help`."""
        if self.name in _PRINTS:
            return True
        if self.name not in _LISTED or self.argument is None or self.argument.startswith("{"):
            return False
        given = properties(self.argument, first="")
        return not _HELP.isdisjoint(given) or any(given.get(key) in _HELP for key in ("", "format", "model"))


class Options(msgspec.Struct, frozen=True):
    """The options of a command line, in order."""

    every: tuple[Option, ...] = ()

    def named(self, *names: str) -> tuple[Option, ...]:
        """Return the options with these names."""
        return tuple(option for option in self.every if option.name in names)

    def values(self, key: str, *names: str) -> tuple[str, ...]:
        """Return the values of a key in the options with these names, in order."""
        given = (option.properties for option in self.named(*names))
        return tuple(each[key] for each in given if key in each)

    def devices(self) -> frozenset[str]:
        """Return the drivers of all `-device` options."""
        return frozenset(self.values("driver", "device"))

    def disks(self) -> tuple[Option, ...]:
        """Return the options that attach a disk image."""
        return self.named(*_DISKS)

    def unread(self) -> tuple[Option, ...]:
        """Return the options that name a file with more options, which this module does not read."""
        return self.named(*_FILES)

    def __add__(self, other: Options) -> Options:
        return Options((*self.every, *other.every))


def parse(words: Iterable[str]) -> Options:
    """Return the options of a command line.

    Arguments that QEMU refuses are not an error here. An unknown option is assumed to have an argument.

    Args:
        words: The arguments, without the program.
    """
    found: list[Option] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            found.append(Option(word, "hda", word))
            continue
        name = word.removeprefix("-").removeprefix("-")
        alone = not name or "=" in name or name in _WITHOUT_ARGUMENT
        found.append(Option(word, name, None if alone else next(rest, None)))
    return Options(tuple(found))


def properties(text: str, *, first: str | None = None) -> dict[str, str]:
    """Return the keys and values of a list.

    Args:
        text: A list of `key=value`.
        first: The key of the first value, if it has none.
    """
    found: dict[str, str] = {}
    while text:
        end = next((at for at, character in enumerate(text) if character in "=,"), len(text))
        if text[end : end + 1] == "=":
            key = text[:end]
            found[key], text = _value(text[end + 1 :])
        elif first is not None:
            found[first], text = _value(text)
        else:
            flag, text = text[:end], text[end + 1 :]
            found[flag.removeprefix("no")] = "off" if flag.startswith("no") else "on"
        first = None
    return found


def members(text: str) -> dict[str, str]:
    """Return the members of a JSON object, with dotted keys for nested ones.

    Return nothing for invalid JSON, which QEMU refuses.
    """
    try:
        return dict(_flat("", msgspec.json.decode(text)))
    except msgspec.DecodeError:
        return {}


def value(text: object) -> str:
    """Return text as a value of a list, with its commas doubled."""
    return str(text).replace(",", ",,")


def pairs(given: Mapping[str, object]) -> str:
    """Return a list of `key=value`; `properties` reads it."""
    return ",".join(f"{key}={value(each)}" for key, each in given.items())


def _value(text: str) -> tuple[str, str]:
    """Split a list into its first value, up to a single comma, and the rest."""
    read = ""
    while True:
        head, comma, text = text.partition(",")
        read += head
        if not comma or not text.startswith(","):
            return read, text
        read += ","
        text = text[1:]


def _flat(prefix: str, found: Any) -> Iterator[tuple[str, str]]:
    match found:
        case dict():
            for key, each in found.items():
                yield from _flat(f"{prefix}.{key}" if prefix else key, each)
        case list():
            for number, each in enumerate(found):
                yield from _flat(f"{prefix}.{number}", each)
        case bool():
            yield prefix, "on" if found else "off"
        case None:
            yield prefix, ""
        case _:
            yield prefix, str(found)
