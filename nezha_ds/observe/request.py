"""One HTTP/1.1 request and its reply, as values: what a scrape and a probe need, and nothing that a stranger could use.

Nothing here waits, reads a file or grows with what was sent: a head is at most `HEAD_BYTES`, a body is never read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

HEAD_BYTES = 16 * 1024
"""Request line and headers together. Prometheus sends about 300 bytes, with a token of its own up to a few thousand."""

_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]*|\*) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    """Without the query, as it was sent."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By name in small letters, the first of each; values in latin-1, as HTTP has it."""


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The whole reply. It tells neither program nor version, and ends the connection."""
        own = {
            "Date": formatdate(usegmt=True),
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**own, **self.headers}.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def say(status: int, text: str = "", **headers: str) -> Reply:
    """A reply of one line: the text, or what the status means."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, f"{text or HTTPStatus(status).phrase}\n".encode(), headers=named)


def parse(head: bytes) -> Request | HTTPStatus:
    """The request that a head, up to its empty line, asks for; the status that says so for what is not HTTP/1."""
    line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    asked = _LINE.fullmatch(line)
    found = [_HEADER.fullmatch(each) for each in lines]
    if not asked or not all(found):
        return HTTPStatus.BAD_REQUEST
    headers: dict[str, str] = {}
    for each in filter(None, found):
        headers.setdefault(each[1].decode("latin-1").lower(), each[2].decode("latin-1"))
    return Request(asked[1].decode(), asked[2].decode().partition("?")[0], headers)
