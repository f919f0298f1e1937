"""Blocks of headers (HPACK, RFC 7541): decoded by `hpack`, and the same ones not twice; encoded without any state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import hpack

from stn_serve.h2_frames import BrokenConnection, ErrorCode

Header = tuple[bytes, bytes]
Read = TypeVar("Read")

MAX_LIST_BYTES = 64 * 1024
"""What a block may grow to (names, values and 32 bytes each). More ends the connection: what follows cannot be read."""
MAX_CACHED = 32
"""Blocks of one connection."""
MAX_CACHED_BYTES = 1024
"""Of one block."""
MAX_INTEGER_BYTES = 5
"""Larger numbers are larger than anything here may be."""

_INDEXED = 0x80
_CHANGES_TABLE = 0x60
"""Set in the first byte of literals that are remembered, and of changes of the table's size."""


class HeaderDecoder(Generic[Read]):
    """The receiving end of one connection.

    A block is the same headers again as long as the dynamic table is the same, and callers of RPCs send the same ones
    again and again: what `read` has made of a block is kept with it.
    """

    def __init__(self, read: Callable[[Sequence[Header]], Read]) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_LIST_BYTES)
        self._read = read
        self._known: dict[bytes, Read] = {}

    def request(self, block: bytes) -> Read:
        """What `read` makes of a request's headers.

        Raises:
            BrokenConnection: see `skip`.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        changes = changes_table(block)
        result = self._read(self._decode(block, changes))
        if not changes and len(block) <= MAX_CACHED_BYTES:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            self._known[block] = result
        return result

    def skip(self, block: bytes) -> None:
        """Headers that nobody looks at, but which later ones may refer to.

        Raises:
            BrokenConnection: they cannot be decoded, or are too large.
        """
        if block not in self._known:
            self._decode(block, changes_table(block))

    def _decode(self, block: bytes, changes: bool) -> Sequence[Header]:
        if changes:
            self._known.clear()
        try:
            return self._decoder.decode(block, raw=True)  # type: ignore[return-value]  # raw ones are bytes
        except hpack.OversizedHeaderListError as error:
            raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from error
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise BrokenConnection(ErrorCode.COMPRESSION_ERROR, "headers that cannot be decoded") from error


def changes_table(block: bytes) -> bool:
    """Whether the decoder's dynamic table is another one after a block, or the block is cut off.

    Raises:
        BrokenConnection: it holds a number beyond all bounds.
    """
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            if first & _INDEXED:
                at = _after_integer(block, at, 0x7F)
            elif first & _CHANGES_TABLE:
                return True
            else:
                at = _after_integer(block, at, 0x0F)
                if not first & 0x0F:
                    at = _after_string(block, at)
                at = _after_string(block, at)
    except IndexError:
        return True
    return at != end


def _after_integer(block: bytes, at: int, mask: int) -> int:
    if block[at] & mask != mask:
        return at + 1
    begin = at = at + 1
    while block[at] & 0x80:
        at += 1
        if at - begin >= MAX_INTEGER_BYTES:
            raise BrokenConnection(ErrorCode.COMPRESSION_ERROR, "headers that cannot be decoded")
    return at + 1


def _after_string(block: bytes, at: int) -> int:
    length = block[at] & 0x7F
    begin = _after_integer(block, at, 0x7F)
    if length == 0x7F:
        length += sum((byte & 0x7F) << 7 * place for place, byte in enumerate(block[at + 1 : begin]))
    return begin + length


STATUS = {200: b"\x88", 400: b"\x8c"}
"""`:status`, as the static table has it."""
EMPTY_TABLE = b"\x20"
"""Says that nothing is remembered, to a peer that wants a smaller table than usual; begins a block."""


def literal(name: bytes, value: bytes) -> bytes:
    """A header that is not remembered, and not compressed."""
    return b"\x00" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    length = len(text)
    if length < 0x7F:
        return bytes((length,))
    parts = [0x7F]
    length -= 0x7F
    while length >= 0x80:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    parts.append(length)
    return bytes(parts)
