"""The text of a mail, without its transfer encoding: "=3D" and "=" at the ends of lines, or base64."""

from __future__ import annotations

import email
import email.message
import email.policy
import re
from collections.abc import Iterator

_HEADER = re.compile(rb"(?:From [^\n]+\n)?(?:[A-Za-z][\w-]*:[^\n]*\n(?:[ \t][^\n]*\n)*)+\r?\n", re.ASCII)
_ENCODED = re.compile(
    rb"^Content-Transfer-Encoding:\s*(?:quoted-printable|base64)", re.IGNORECASE | re.MULTILINE
)


def text(data: bytes) -> bytes:
    """Return the text of a mail if it is encoded; other data as it is.

    Args:
        data: The mail with its header, or any other text.
    """
    if not (_HEADER.match(data) and _ENCODED.search(data)):
        return data
    mail = email.message_from_bytes(data, policy=email.policy.default)
    return b"\n".join(_parts(mail)) or data


def _parts(mail: email.message.Message) -> Iterator[bytes]:
    for part in mail.walk():
        body = part.get_payload(decode=True)
        if part.get_content_type() == "text/plain" and isinstance(body, bytes):
            yield body
