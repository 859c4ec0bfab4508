"""The text of a mail without its transfer encoding."""

from __future__ import annotations

import base64

import pytest

from vmdebug.debugger import mail_text

HEADER = b"From: a@b\nSubject: [BUG] x\nContent-Type: text/plain; charset=utf-8\n"
TRACE = b"> RIP: 0010:f+0x1/0x2 =\n"


def test_quoted_printable_lines_are_joined() -> None:
    mail = HEADER + b"Content-Transfer-Encoding: quoted-printable\n\n> f+0x1/=\n0x2 a=3Db\n"
    assert mail_text.text(mail) == b"> f+0x1/0x2 a=b\n"


def test_base64_is_decoded() -> None:
    mail = HEADER + b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(TRACE)
    assert mail_text.text(mail) == TRACE


@pytest.mark.parametrize("data", [b"", TRACE, HEADER + b"\n" + TRACE, b"x: =3D\n\n" + TRACE, b"\xff\xfe"])
def test_other_text_stays_as_it_is(data: bytes) -> None:
    assert mail_text.text(data) == data
