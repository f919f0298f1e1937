"""Messages in the data of a gRPC stream: a flag, four bytes of length, and the message (PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from struct import Struct

from stn_serve.errors import PayloadTooLarge, ServingError

_PREFIX = Struct(">?L")
PREFIX_BYTES = _PREFIX.size


class MessageReader:
    """Collects one call's data until a message is whole."""

    __slots__ = ("_buffer", "_is_compressed", "_length", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._length: int | None = None
        self._is_compressed = False

    def add(self, data: memoryview) -> None:
        """More has come; it is copied."""
        self._buffer += data

    @property
    def held(self) -> int:
        """Bytes of messages that nobody has taken yet."""
        return len(self._buffer)

    @property
    def missing(self) -> int:
        """Bytes without which there is no message."""
        return (PREFIX_BYTES if self._length is None else self._length) - self.held

    @property
    def is_compressed(self) -> bool:
        """Whether the message that has begun is."""
        return self._is_compressed

    @property
    def is_between_messages(self) -> bool:
        """Whether the stream may end here."""
        return self._length is None and not self.held

    def take(self) -> tuple[bytes, bool] | None:
        """The next message and whether it is compressed; None as long as it is not whole.

        Raises:
            PayloadTooLarge: it is going to be larger than allowed.
            ServingError: its flag is none.
        """
        if self._length is None:
            if len(self._buffer) < PREFIX_BYTES:
                return None
            prefix = self._cut(PREFIX_BYTES)
            if prefix[0] > 1:
                raise ServingError(f"a message begins with the flag {prefix[0]}, expected 0 or 1")
            self._is_compressed, length = _PREFIX.unpack(prefix)
            if length > self._max_bytes:
                raise PayloadTooLarge(f"Received message larger than max ({length} vs. {self._max_bytes})")
            self._length = length
        if len(self._buffer) < self._length:
            return None
        message = self._cut(self._length)
        self._length = None
        return message, self._is_compressed

    def beginning(self, size: int) -> bytes | None:
        """So many bytes of the message that has begun; None until they have come."""
        return None if self._length is None or self.held < size else bytes(self._buffer[:size])

    def _cut(self, size: int) -> bytes:
        """So many bytes from the front."""
        with memoryview(self._buffer) as view:
            cut = bytes(view[:size])
        del self._buffer[:size]
        return cut


def framed(message: bytes) -> bytes:
    """A message as it is sent, not compressed."""
    return _PREFIX.pack(False, len(message)) + message
