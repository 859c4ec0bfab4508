from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug.vm import qemuargs
from vmdebug.vm.qemuargs import Option

KEYS = st.text(st.characters(codec="ascii", exclude_characters="=,", min_codepoint=33), min_size=1)
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["-drive", "file=x"], [Option("-drive", "drive", "file=x")]),
        (["--drive", "file=x"], [Option("--drive", "drive", "file=x")]),
        (["-S", "-m", "1G"], [Option("-S", "S"), Option("-m", "m", "1G")]),
        (["-append", "-s"], [Option("-append", "append", "-s")]),
        (["disk.img", "-S"], [Option("disk.img", "hda", "disk.img"), Option("-S", "S")]),
        (["-drive=file=x", "-S"], [Option("-drive=file=x", "drive=file=x"), Option("-S", "S")]),
        (["-device"], [Option("-device", "device")]),
        (["-"], [Option("-", "")]),
        ([], []),
    ],
)
def test_words_are_read_as_qemu_reads_them(words: list[str], options: list[Option]) -> None:
    assert list(qemuargs.parse(words).every) == options


@pytest.mark.parametrize(
    ("option", "argument", "properties"),
    [
        ("device", "edu", {"driver": "edu"}),
        ("device", "edu,id=x", {"driver": "edu", "id": "x"}),
        ("device", "id=x,driver=edu", {"driver": "edu", "id": "x"}),
        ("device", '{"driver": "edu", "on": true}', {"driver": "edu", "on": "on"}),
        ("device", '{"driver": ', {}),
        ("drive", "file=a,,b=c,readonly", {"file": "a,b=c", "readonly": "on"}),
        ("drive", "file={,x", {"file": "{", "x": "on"}),
        ("chardev", "socket,path=/x,server,nowait", {
            "backend": "socket", "path": "/x", "server": "on", "wait": "off",
        }),
        ("chardev", "a,,b,id=x", {"backend": "a,b", "id": "x"}),
        ("machine", "q35,accel=kvm:tcg", {"type": "q35", "accel": "kvm:tcg"}),
        ("M", "accel=tcg", {"accel": "tcg"}),
        ("cpu", "host,+x2apic", {"model": "host", "+x2apic": "on"}),
        ("blockdev", '{"driver": "raw", "file": {"driver": "file", "filename": "a,b"}, "n": [1, null]}', {
            "driver": "raw", "file.driver": "file", "file.filename": "a,b", "n.0": "1", "n.1": "",
        }),
        ("m", "1G,slots=2", {"size": "1G", "slots": "2"}),
        ("device", "edu,id=a,id=b", {"driver": "edu", "id": "b"}),
        ("S", None, {}),
    ],
)  # fmt: skip
def test_an_argument_is_read_as_keys_and_values(
    option: str, argument: str | None, properties: dict[str, str]
) -> None:
    assert Option(f"-{option}", option, argument).properties == properties


@given(st.dictionaries(KEYS, VALUES))
def test_a_list_is_read_as_it_was_written(pairs: dict[str, str]) -> None:
    assert qemuargs.properties(qemuargs.pairs(pairs)) == pairs


@given(VALUES, st.dictionaries(KEYS, VALUES))
def test_a_first_value_without_a_key_is_read_as_it_was_written(first: str, pairs: dict[str, str]) -> None:
    text = ",".join(filter(None, (qemuargs.value(first), qemuargs.pairs(pairs))))
    if "=" in first.partition(",")[0] or not first:
        return  # a key, or nothing
    assert qemuargs.properties(text, first="") == {"": first, **pairs}


@given(st.dictionaries(KEYS.filter(lambda key: "." not in key), VALUES))
def test_json_says_the_same_as_a_list(pairs: dict[str, str]) -> None:
    written = Option("-object", "object", json.dumps(pairs))
    assert written.properties == qemuargs.properties(qemuargs.pairs(pairs))


@given(st.lists(st.text()))
def test_whatever_words_there_are_each_is_in_an_option(words: list[str]) -> None:
    options = qemuargs.parse(words).every
    again = [
        word
        for option in options
        for word in (option.word, *([] if option.argument in (None, option.word) else [option.argument]))
    ]
    assert set(again) == set(words)
    for option in options:
        assert isinstance(option.properties, dict)
        assert option.prints in (True, False)


@pytest.mark.parametrize(
    ("words", "prints"),
    [
        (("-device", "help"), True),
        (("--device", "?"), True),
        (("-device", "e1000,help"), True),
        (("-device", "driver=help"), False),
        (("-device", '{"driver": "help"}'), False),
        (("-nic", "model=help"), True),
        (("-drive", "format=help"), True),
        (("-drive", "file=help"), False),
        (("-name", "help"), False),
        (("-append", "help"), False),
        (("-version",), True),
        (("--help",), True),
        (("-cpu", "max"), False),
    ],
)
def test_a_question_to_qemu_is_told_from_a_start(words: tuple[str, ...], prints: bool) -> None:
    assert [option.prints for option in qemuargs.parse(words).every] == [prints]


def test_options_answer_what_they_say() -> None:
    options = qemuargs.parse(
        ["-device", "edu", "--device", '{"driver":"vmgenid"}', "-fda", "f", "x.img", "-readconfig", "c"]
    )
    assert options.devices() == {"edu", "vmgenid"}
    assert [option.word for option in options.disks()] == ["-fda", "x.img"]
    assert [option.word for option in options.unread()] == ["-readconfig"]
    assert options.named("fda", "fdb")[0].argument == "f"
    assert (options + qemuargs.parse(["-S"])).named("S")
