"""Frames of HTTP/2 as bytes (RFC 9113, sections 4 and 6): taken apart with their sizes checked, and put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What every client begins with."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""Types of frames."""

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEAD_BYTES = 9
MAX_WINDOW = 2**31 - 1

_HEAD = Struct(">HBBBL")
_LONG = Struct(">L")
_SETTING = Struct(">HL")
_GOAWAY = Struct(">LL")


class ErrorCode(IntEnum):
    """Section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """Section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class BrokenConnection(Exception):
    """The peer has done what a connection does not survive; `str(error)` tells it why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class BrokenStream(Exception):
    """The peer has done what one stream does not survive."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


Frame = tuple[int, int, int, memoryview]
"""Type, flags, stream and payload."""

_LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_STREAMS = (DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION)
_ON_CONNECTIONS = (SETTINGS, PING, GOAWAY)
MAX_CONTROL_BYTES = 64 * 1024
"""Of a frame that is not DATA, whatever we allow those: no headers that may be decoded are longer."""


class FrameReader:
    """Cuts what comes into frames; a part of one is kept until the rest is there.

    Not so of DATA, which would be copied for nothing: each part is a frame, and the last one has the flag of its end.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._kept = bytearray()
        self._wanted = len(PREFACE)
        """Bytes without which it is no use to look."""
        self._preface_seen = False
        self._rest_bytes = 0
        """Of the DATA that has begun, with its flags and stream."""
        self._rest_of = (0, 0)

    def read(self, data: bytes) -> Iterator[Frame]:
        """The frames that are there now.

        Raises:
            BrokenConnection: no preface, or a frame that is too long, has a wrong length or is where it cannot be.
        """
        begin = 0
        if self._rest_bytes:
            begin = min(self._rest_bytes, len(data))
            yield self._part(memoryview(data)[:begin])
        elif self._kept or not self._preface_seen:
            self._kept += data
            if not self._preface_seen and not PREFACE.startswith(self._kept[: len(PREFACE)]):
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "this port speaks HTTP/2 only")
            if len(self._kept) < self._wanted:
                return
            data = bytes(self._kept)
            self._kept.clear()
            if not self._preface_seen:
                begin = len(PREFACE)
                self._preface_seen = True
        view, size = memoryview(data), len(data)
        while True:
            self._wanted = HEAD_BYTES
            payload = begin + HEAD_BYTES
            if payload > size:
                break
            high, low, kind, flags, stream = _HEAD.unpack_from(data, begin)
            length = high << 8 | low
            stream &= MAX_WINDOW
            if kind or length > self._max_frame_bytes or not stream:
                self._check(kind, stream, length)
            end = payload + length
            if end > size:
                if kind == DATA and not flags & PADDED:
                    self._rest_bytes, self._rest_of = length, (flags, stream)
                    if payload < size:
                        yield self._part(view[payload:])
                    return
                self._wanted += length
                break
            yield kind, flags, stream, view[payload:end]
            begin = end
        self._kept += view[begin:]

    def _part(self, payload: memoryview) -> Frame:
        """The next part of the DATA that has begun."""
        self._rest_bytes -= len(payload)
        flags, stream = self._rest_of
        return DATA, flags & ~END_STREAM if self._rest_bytes else flags, stream, payload

    def _check(self, kind: int, stream: int, length: int) -> None:
        limit = MAX_CONTROL_BYTES if kind else self._max_frame_bytes
        if length > limit or length != _LENGTHS.get(kind, length):
            raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} and {length} bytes")
        if (kind == SETTINGS and length % 6) or (kind == GOAWAY and length < _GOAWAY.size):
            raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} and {length} bytes")
        if kind == PUSH_PROMISE:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "clients push nothing")
        if (kind in _ON_STREAMS and not stream) or (kind in _ON_CONNECTIONS and stream):
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on stream {stream}")


def unpadded(payload: memoryview, flags: int) -> memoryview:
    """The payload of DATA or HEADERS without its padding.

    Raises:
        BrokenConnection: the padding is longer than the frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def fragment(payload: memoryview, flags: int) -> bytes:
    """The part of a block of headers that a HEADERS frame carries; priorities are deprecated, and skipped.

    Raises:
        BrokenConnection: padding or priority do not fit into the frame.
    """
    payload = unpadded(payload, flags)
    if flags & HAS_PRIORITY:
        if len(payload) < _LENGTHS[PRIORITY]:
            raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
        payload = payload[_LENGTHS[PRIORITY] :]
    return bytes(payload)


def head(kind: int, flags: int, stream: int, length: int) -> bytes:
    """The nine bytes before a payload of so many."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def settings(values: Mapping[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return head(SETTINGS, 0, 0, 6 * len(values)) + b"".join(_SETTING.pack(*item) for item in values.items())


SETTINGS_ACK = head(SETTINGS, ACK, 0, 0)


def read_settings(payload: memoryview) -> Iterator[tuple[int, int]]:
    """Number and value of each setting, unknown ones too."""
    return _SETTING.iter_unpack(payload)


def ping(payload: bytes, flags: int = 0) -> bytes:
    """A PING frame."""
    return head(PING, flags, 0, 8) + payload


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; 0 is the connection."""
    return head(WINDOW_UPDATE, 0, stream, 4) + _LONG.pack(increment)


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return head(RST_STREAM, 0, stream, 4) + _LONG.pack(code)


def number(payload: memoryview) -> int:
    """What RST_STREAM and WINDOW_UPDATE carry."""
    value: int = _LONG.unpack(payload)[0]
    return value & MAX_WINDOW


def goaway(last_stream: int, code: int, message: str) -> bytes:
    """A GOAWAY frame."""
    text = message.encode()
    return head(GOAWAY, 0, 0, _GOAWAY.size + len(text)) + _GOAWAY.pack(last_stream, code) + text
