"""The headers of a gRPC call, read; and those of its answer, written (gRPC over HTTP/2, PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from grpc import StatusCode

from stn_serve.compression import WINDOW_BITS
from stn_serve.h2_connection import MAX_LIST_BYTES
from stn_serve.h2_frames import BrokenStream, ErrorCode
from stn_serve.h2_headers import STATUS, Header, literal

Metadata = tuple[tuple[str, str | bytes], ...]

IDENTITY = "identity"
MAX_DETAILS_BYTES = 4096
"""Of a status message, which is sent as a header: it may be three times as long there, and clients bound those."""

_PSEUDO = (b":method", b":scheme", b":path", b":authority")
_REQUIRED = _PSEUDO[:3]
_OF_A_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_RESERVED = frozenset(
    (b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding")
)
"""What calls' own metadata does not have."""
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE_ENDS = re.compile(rb"[\0\r\n]")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(frozen=True, slots=True)
class Head:
    """What a call begins with: a `grpc.HandlerCallDetails`. It is read once for all calls that begin alike."""

    method: str
    """`/package.Service/Method`."""
    invocation_metadata: Metadata
    timeout_s: float | None = None
    encoding: str = IDENTITY
    """Of messages that are compressed."""
    http_status: int = 200
    """Another one is the answer to what is no call of gRPC."""
    error: tuple[StatusCode, str] | None = None
    """The answer to a call that contradicts the protocol."""


def read_head(headers: Sequence[Header]) -> Head:
    """The head of a call.

    Raises:
        BrokenStream: they are no headers of a request (RFC 9113, section 8.2 and 8.3).
    """
    pseudo, regular = _checked(headers)
    fields = dict(regular)
    content_type = fields.get(b"content-type", b"")
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif content_type.partition(b";")[0].partition(b"+")[0].strip() != b"application/grpc":
        status = 415
    error: tuple[StatusCode, str] | None = None
    size = sum(len(name) + len(value) + 32 for name, value in headers)
    if size > MAX_LIST_BYTES:
        error = (
            StatusCode.RESOURCE_EXHAUSTED,
            f"received metadata of {size} bytes, more than the {MAX_LIST_BYTES} allowed",
        )
    encoding = fields.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1")
    if encoding != IDENTITY and encoding not in WINDOW_BITS:
        error = StatusCode.UNIMPLEMENTED, f"messages compressed with {encoding!r} cannot be read"
    timeout_s = None
    if b"grpc-timeout" in fields:
        match = _TIMEOUT.fullmatch(fields[b"grpc-timeout"])
        if match:
            timeout_s = int(match[1]) * _UNIT_S[match[2]]
        else:
            error = StatusCode.INTERNAL, "grpc-timeout is not up to eight digits and one of H, M, S, m, u, n"
    try:
        metadata = tuple(_entry(name, value) for name, value in regular if name not in _RESERVED)
    except ValueError as failure:
        metadata, error = (), (StatusCode.INTERNAL, f"binary metadata is not base64: {failure}")
    return Head(pseudo[b":path"].decode("latin-1"), metadata, timeout_s, encoding, status, error)


def _checked(headers: Sequence[Header]) -> tuple[dict[bytes, bytes], list[Header]]:
    pseudo: dict[bytes, bytes] = {}
    regular: list[Header] = []
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise _malformed(f"{name!r} where it cannot be")
            pseudo[name] = value
        else:
            if not _NAME.fullmatch(name) or name in _OF_A_CONNECTION or (name == b"te" and value != b"trailers"):
                raise _malformed(f"{name!r} in a request")
            regular.append((name, value))
        if _VALUE_ENDS.search(value):
            raise _malformed(f"a value of {name!r} with control characters")
    for name in _REQUIRED:
        if not pseudo.get(name):
            raise _malformed(f"no {name!r}")
    return pseudo, regular


def _malformed(message: str) -> BrokenStream:
    return BrokenStream(ErrorCode.PROTOCOL_ERROR, message)


def _entry(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    key = name.decode("latin-1")
    if not key.endswith("-bin"):
        return key, value.decode("latin-1")
    try:
        return key, b"".join(_unpadded_base64(part) for part in value.split(b","))
    except binascii.Error as error:
        raise ValueError(f"{key}: {error}") from error


def _unpadded_base64(text: bytes) -> bytes:
    text = text.strip()
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


CONTENT_TYPE = literal(b"content-type", b"application/grpc")
ACCEPTED = literal(b"grpc-accept-encoding", ",".join((IDENTITY, *WINDOW_BITS)).encode())

ANSWER = STATUS[200] + CONTENT_TYPE
"""Headers before messages."""


def only_trailers(trailers: bytes) -> bytes:
    """Headers of an answer without messages."""
    return ANSWER + ACCEPTED + trailers


def not_grpc(http_status: int) -> bytes:
    """The answer to something else than a call."""
    return literal(b":status", str(http_status).encode())


def trailers(code: StatusCode, details: str) -> bytes:
    """How a call ended."""
    return _trailers(code, details.strip()[:MAX_DETAILS_BYTES])


@lru_cache(64)
def _trailers(code: StatusCode, details: str) -> bytes:
    """Of details that are short enough to be kept, callers may have chosen them."""
    block = literal(b"grpc-status", str(code.value[0]).encode())
    if not details:
        return block
    text = details.encode("utf-8", "replace")[:MAX_DETAILS_BYTES].decode("utf-8", "ignore")
    return block + literal(b"grpc-message", quote(text, safe=_PLAIN).encode())


_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
OK = trailers(StatusCode.OK, "")
