"""Reasons from the facts of the kernel's Kconfig; tests/guest has tests of the facts."""

import pytest

from vmdebug.sources.configuration import reasons
from vmdebug.sources.configuration.reasons import Facts

# The output of the program for Linux 6.1, with messages of make.
SAID = """\
make[1]: Entering directory '/o'
9P_FS\tvalue\tn
9P_FS\tdepends\tn NET_9P [=n]
9P_FS\tvisible\tn NET_9P [=n]
KERNEL_GZIP\tvalue\tn
KERNEL_GZIP\tchosen\tKERNEL_XZ
INET\tvalue\ty
INET\tselected\tFOO [=y] && BAR [=y]
NOPE\tunknown\t
"""


def test_the_facts() -> None:
    assert reasons.read(SAID) == {
        "CONFIG_9P_FS": Facts(limits={"NET_9P [=n]": "n"}),
        "CONFIG_KERNEL_GZIP": Facts(chosen="KERNEL_XZ"),
        "CONFIG_INET": Facts(selected=["FOO [=y] && BAR [=y]"]),
        "CONFIG_NOPE": Facts(known=False),
    }


@pytest.mark.parametrize(
    ("facts", "wanted", "found", "words"),
    [
        (Facts(known=False), "y", "n", "this kernel has no such option"),
        (
            Facts(limits={"NET [=n]": "n", "A [=y] || B [=n]": "n"}),
            "y",
            "n",
            "depends on NET [=n] and (A [=y] || B [=n])",
        ),
        (Facts(limits={"EXPERT [=n]": "n"}), "n", "y", "it can only be changed with EXPERT [=n]"),
        (Facts(selected=["FOO [=y]"]), "n", "y", "selected by FOO [=y]"),
        (Facts(chosen="SLOB"), "y", "n", "its choice is set to SLOB"),
        (Facts(limits={"m [=m]": "m"}), "y", "m", "depends on m: it can only be a module"),
        (Facts(limits={"FOO [=m]": "m"}), "y", "m", "depends on FOO [=m]"),
        (Facts(promptless=True), "y", "n", "it has no prompt: only other options set it"),
        (
            None,
            "y",
            "n",
            "a dependency or a select decides: search for it in menuconfig with `/`",
        ),
    ],
)
def test_in_words(facts: Facts | None, wanted: str, found: str, words: str) -> None:
    assert reasons.in_words(facts, wanted, found) == words
