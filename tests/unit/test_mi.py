"""MI lines that GDB wrote, and lines that it should never write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug.debugger import mi
from vmdebug.errors import GdbError

STOPPED = (
    b'*stopped,reason="breakpoint-hit",disp="keep",bkptno="1",frame={addr="0xffffffff82e0d7b7",'
    b'func="start_kernel",args=[],file="init/main.c",fullname="/src/init/main.c",line="914",'
    b'arch="i386:x86-64"},thread-id="1",stopped-threads="all"\n'
)


def record(line: bytes) -> mi.Record:
    found = mi.read(line)
    assert found is not None
    return found


def test_a_result_has_the_token_of_its_command() -> None:
    assert record(b'17^done,value="2"\n') == mi.Record("^", 17, "done", '17^done,value="2"')


def test_an_async_record_has_no_token() -> None:
    stopped = record(STOPPED)
    assert (stopped.sigil, stopped.token, stopped.name) == (mi.EXEC, 0, "stopped")


def test_a_notification_is_told_from_a_stop() -> None:
    assert record(b'=thread-group-exited,id="i1"\n').sigil == mi.NOTIFY


@pytest.mark.parametrize(
    "line", [b"(gdb) \n", b"\n", b"", b"QEMU says hello\n", b"1^do ne\n", b"^\n", b"~text without quotes\n"]
)
def test_the_prompt_and_what_is_not_mi_are_no_records(line: bytes) -> None:
    assert mi.read(line) is None


def test_plain_strings() -> None:
    assert record(b'1^done,value="2",has_more="0"').payload() == {"value": "2", "has_more": "0"}


def test_nothing_carried() -> None:
    assert record(b"6^running\n").payload() == {}


def test_nested_values() -> None:
    payload = record(STOPPED).payload()
    assert payload["frame"]["func"] == "start_kernel"
    assert payload["frame"]["args"] == []
    assert payload["stopped-threads"] == "all"


def test_lists_of_named_values() -> None:
    line = b'5^done,stack=[frame={level="0",func="f"},frame={level="1",func="g"}]'
    assert [frame["func"] for frame in record(line).payload()["stack"]] == ["f", "g"]


def test_a_name_that_comes_twice_keeps_both() -> None:
    assert record(b'1^done,thread-id="1",thread-id="2"').payload() == {"thread-id": ["1", "2"]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb'1^done,value="a \"b\" \\ c\n"', 'a "b" \\ c\n'),
        (rb'1^done,value="\303\244"', "ä"),
        ('1^done,value="ä"'.encode(), "ä"),
        (b'1^done,value="\xff"', "\\xff"),
        (rb'1^done,value="\377"', "\\377"),
        (rb'1^done,value="\q"', "\\q"),
        (rb'1^done,value="\400 \""', '\\400 "'),
    ],
)
def test_escapes_also_bad_ones(written: bytes, meant: str) -> None:
    assert record(written).payload() == {"value": meant}


@pytest.mark.parametrize(
    "line",
    [
        b"1^done,a=[",
        b'1^done,a=[{b="1"',
        b'1^done,a={b="1"]',
        b'1^done,a="cut',
        b'1^done,a="cut\\"',
        b"1^done,a",
        b"1^done,a=",
        b'1^done,a=b"c"',
        b"1^done,",
        b'1^done,a="1"x',
        b'1^done,"1"',
    ],
)
def test_a_record_that_is_cut_is_an_error_and_not_a_hang(line: bytes) -> None:
    with pytest.raises(GdbError) as raised:
        record(line).payload()
    assert raised.value.detail == line.decode()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (rb'~"Thread \"1\"\n"', 'Thread "1"\n'),
        (rb'&"warning: \q\n"', "warning: \\q\n"),
        (b'@"from the target"', "from the target"),
        (b'~"cut', '"cut'),
        (b'~"a"b"', '"a"b"'),
    ],
)
def test_streams(line: bytes, text: str) -> None:
    assert record(line).text() == text


def test_quoting_survives_gdbs_own_parser() -> None:
    assert mi.quote('a "b" \\n\n') == r'"a \"b\" \\n\n"'


# All kinds of MI values, and how GDB writes them.
names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
values = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="\r")),
    lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=4),
    max_leaves=12,
)


def written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}={written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inner) for inner in value) + "]"
    assert isinstance(value, str)
    return mi.quote(value)


@given(st.dictionaries(names, values, max_size=4))
def test_whatever_gdb_can_write_is_read_back(payload: dict[str, object]) -> None:
    line = "1^done" + "".join(f",{key}={written(value)}" for key, value in payload.items())
    assert record(line.encode()).payload() == payload


@given(st.dictionaries(names, values, min_size=1, max_size=3), st.data())
def test_a_line_cut_anywhere_never_hangs(payload: dict[str, object], data: st.DataObject) -> None:
    line = "1^done" + "".join(f",{key}={written(value)}" for key, value in payload.items())
    cut = data.draw(st.integers(min_value=0, max_value=len(line)))
    found = mi.read(line[:cut].encode())
    if found is not None:
        try:
            found.payload()
        except GdbError:
            assert cut < len(line)


@given(st.binary())
def test_no_bytes_at_all_upset_it(noise: bytes) -> None:
    found = mi.read(noise)
    if found is not None and found.sigil in (mi.CONSOLE, mi.TARGET, mi.LOG):
        assert isinstance(found.text(), str)
