"""What a connection of HTTP/2 sends: its peer's windows, the streams that wait for them, and one write a turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stn_serve.h2_frames import MAX_WINDOW, BrokenConnection, ErrorCode
from stn_serve.h2_headers import EMPTY_TABLE

if TYPE_CHECKING:
    from stn_serve.h2_stream import Stream

DEFAULT_WINDOW = 65_535
MIN_FRAME_BYTES, MAX_FRAME_BYTES = 16_384, 2**24 - 1

FLUSH_BYTES = 64 * 1024
"""So much is sent at once, without waiting for more."""


class Output:
    """The connection and its streams write to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.window = DEFAULT_WINDOW
        """What the peer lets all streams together send."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._max_frame = MIN_FRAME_BYTES
        self._waiting: dict[Stream, None] = {}
        """Those that have more to send than they may."""
        self._shrink_table = False
        self._unsent: list[bytes | memoryview] = []
        self._unsent_bytes = 0
        self.is_paused = False
        """Whether the peer has to read what is on its way, before more is sent."""
        self._is_closed = False

    def write(self, *parts: bytes | memoryview) -> None:
        """Send frames: those of one turn of the loop together, because each call of the kernel costs tens of us."""
        if self._is_closed:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        for part in parts:
            self._unsent.append(part)
            self._unsent_bytes += len(part)
        if self._unsent_bytes > FLUSH_BYTES:
            self._flush()

    def first(self, block: bytes) -> bytes:
        """A block of headers that is about to be sent, as its decoder wants it."""
        if self._shrink_table:
            self._shrink_table = False
            return EMPTY_TABLE + block
        return block

    def takes(self, length: int) -> bool:
        """Whether so much data may be sent in one frame now."""
        return length <= self.window and length <= self._max_frame and not self.is_paused

    def room(self) -> int:
        """The largest frame of data that may be sent now."""
        return 0 if self.is_paused else min(self.window, self._max_frame)

    def wait(self, stream: Stream) -> None:
        """Let it send more when there is room; those that have waited longest come first."""
        self._waiting.pop(stream, None)
        self._waiting[stream] = None

    def waits(self, stream: Stream) -> bool:
        """Whether it has more to send."""
        return stream in self._waiting

    def forget(self, stream: Stream) -> None:
        """It has nothing more to send."""
        self._waiting.pop(stream, None)

    def send_more(self) -> None:
        """What waits, as far as there is room."""
        for stream in list(self._waiting):
            del self._waiting[stream]
            stream.send_more()

    # What the peer says.

    def widen(self, increment: int) -> None:
        """Its window has grown.

        Raises:
            BrokenConnection: beyond all bounds.
        """
        self.window += increment
        if self.window > MAX_WINDOW:
            raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond its limit")
        self.send_more()

    def limit_frames(self, length: int) -> None:
        """It takes no longer frames.

        Raises:
            BrokenConnection: so long ones there are not.
        """
        if not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"frames of {length} bytes")
        self._max_frame = length

    def shrink_table(self) -> None:
        """It wants a smaller table of headers than usual: we use none, and the next block says so."""
        self._shrink_table = True

    # What the transport says.

    def pause(self) -> None:
        """Too much is on its way already."""
        self.is_paused = True

    def resume(self) -> None:
        """There is room again."""
        self.is_paused = False
        self.send_more()

    # The end.

    def close(self) -> None:
        """Send what has been written, and nothing after it."""
        self._flush()
        self._is_closed = True

    def discard(self) -> None:
        """Send nothing more."""
        self._is_closed = True
        self._unsent.clear()

    def _flush(self) -> None:
        parts, self._unsent = self._unsent, []
        if self._unsent_bytes > FLUSH_BYTES:
            self._transport.writelines(parts)
        elif parts:
            self._transport.write(b"".join(parts))
        self._unsent_bytes = 0
