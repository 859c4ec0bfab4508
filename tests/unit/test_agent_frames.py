"""Frames between vmdebug and its agent: exact bytes, in whatever pieces they come."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from vmdebug.channel.agent.frames import Decoder, Frame

frames = st.builds(
    Frame,
    st.sampled_from([b"W", b"O", b"R", b"S"]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50) | st.text("~}^]a", max_size=20).map(str.encode),
)


def test_a_frame_is_a_type_a_number_and_what_it_carries() -> None:
    assert Frame(b"O", 0x01020304, b"hi").encode() == b"O\4\3\2\1hi~"


def test_the_flag_and_the_escape_are_escaped_wherever_they_are() -> None:
    assert Frame(b"I", 0x7D7E, b"~}^]").encode() == b"I}^}]\0\0}^}]^]~"


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 400)))
@example([Frame(b"O", 0, b"}"), Frame(b"O", 1, b"^")], [6, 7, 8])
def test_frames_come_back_from_a_stream_in_any_pieces(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    ends = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    decoder = Decoder()
    heard = [frame for start, end in itertools.pairwise(ends) for frame in decoder.feed(stream[start:end])]
    assert heard == sent


@given(st.binary(max_size=40), frames)
def test_whoever_comes_into_the_middle_finds_the_next_frame(leavings: bytes, frame: Frame) -> None:
    decoder = Decoder()
    decoder.feed(leavings)
    assert decoder.feed(b"~" + frame.encode())[-1:] == [frame]


def test_what_is_too_short_for_a_frame_is_dropped() -> None:
    assert Decoder().feed(b"~~W\0\0~") == []
