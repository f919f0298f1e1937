"""The server's end of an HTTP/2 connection (RFC 9113) over a transport of asyncio.

It reads frames and bounds what a peer can make it do or hold; what it sends is in `h2_output`, whom it waits for in
`h2_timers`. What the requests are is not its business: `accept` is told of each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from stn_serve import h2_frames as frames
from stn_serve.h2_frames import MAX_WINDOW, BrokenConnection, BrokenStream, ErrorCode, Setting
from stn_serve.h2_headers import Header, HeaderDecoder
from stn_serve.h2_output import DEFAULT_WINDOW, Output
from stn_serve.h2_patience import Patience
from stn_serve.h2_reservations import Reservations
from stn_serve.h2_stream import WINDOW, Receiver, Stream
from stn_serve.h2_timers import Timers

logger = logging.getLogger(__name__)

Head = TypeVar("Head")

DEFAULT_TABLE_BYTES = 4096
MAX_STREAMS = 1024
"""Calls at the same time over one connection; more of them wait with their caller."""
MAX_LIST_BYTES = 16 * 1024
"""Of a request's headers."""
CONNECTION_WINDOW = 256 * WINDOW
"""It never holds a peer back, the streams' windows do: otherwise what one of them holds would stop all others."""

_SETTINGS = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        Setting.INITIAL_WINDOW_SIZE: WINDOW,
        Setting.MAX_FRAME_SIZE: WINDOW,
        Setting.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
    }
) + frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW)


class Connection(asyncio.Protocol, Generic[Head]):
    """Created by the server for each caller; ends itself."""

    LINGER_S: ClassVar[float] = 0.2
    """What callers get to close the connection themselves, which loses nothing that is under way."""
    MAX_FRAGMENTS: ClassVar[int] = 16
    """Frames of one block of headers."""

    def __init__(
        self,
        read_head: Callable[[Sequence[Header]], Head],
        accept: Callable[[Stream, Head], Receiver],
        began: Callable[[Connection[Head]], None],
        ended: Callable[[Connection[Head]], None],
        max_reserved_bytes: int,
    ) -> None:
        """Serve one caller.

        Args:
            read_head: Makes of a request's headers what `accept` wants; may raise `BrokenStream`.
            accept: Is told of each new stream.
            began: Is told that the connection is there, after the handshake of TLS.
            ended: Is told of its end.
            max_reserved_bytes: What messages that are larger than a stream's window may hold together; one is let in
                however large it is.
        """
        self.output: Output
        """There once the connection has been made."""
        self.reservations = Reservations(max_reserved_bytes)
        self._accept = accept
        self._began = began
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._timers: Timers
        self._reader = frames.FrameReader(WINDOW)
        self._headers = HeaderDecoder(read_head)
        self._patience = Patience()
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._room = CONNECTION_WINDOW
        self._stream_window = DEFAULT_WINDOW
        self._block: bytearray | None = None
        self._block_of = (0, False)
        self._fragments = 0
        self._is_closing = False
        self._is_leaving = False

    # What asyncio tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has connected."""
        self._transport = transport
        self.output = Output(transport)
        self._timers = Timers(transport, self._close, lambda: self.output.write(frames.ping(bytes(8))))
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._close()
            return
        transport.write(_SETTINGS)
        self._timers.await_head()
        self._began(self)

    def data_received(self, data: bytes) -> None:
        """Some frames have come."""
        self._timers.heard()
        try:
            for kind, flags, number, payload in self._reader.read(data):
                try:
                    self._take(kind, flags, number, payload)
                except BrokenStream as error:
                    self._patience.spend()
                    self._abort(number, error.code)
                if self._is_closing:
                    return
        except BrokenConnection as error:
            self._fail(error.code, str(error))
        except Exception:
            logger.exception("a connection failed")
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error; the server's log tells more")

    def pause_writing(self) -> None:
        """The caller reads more slowly than it is answered."""
        self.output.pause()
        self._timers.await_read()

    def resume_writing(self) -> None:
        """The caller has read nearly all."""
        self._timers.stop_read()
        self.output.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        del exc
        self._is_closing = True
        self.output.discard()
        self._timers.stop()
        self._break_off()
        self._ended(self)

    # What the server tells.

    def leave(self) -> None:
        """Take no more requests, and close when those in flight have been answered."""
        if not self._is_leaving:
            self._is_leaving = True
            self.output.write(frames.goaway(self._last_stream, ErrorCode.NO_ERROR, "the server stops"))
            self._close_when_done()

    def close(self) -> None:
        """Send what has been written, and close; streams are broken off."""
        self._close()
        self._break_off()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        self.output.discard()
        self._transport.abort()

    # What streams tell.

    def closed(self, stream: Stream) -> None:
        """A stream has come to its end."""
        self._streams.pop(stream.id, None)
        self.output.forget(stream)
        self._close_when_done()

    def answered(self) -> None:
        """A call went well, or a part of its answer has been sent."""
        self._patience.restore()

    # Frames.

    def _take(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if self._timers.awaits_head:
            self._check_order(kind, flags, number)
        if kind == frames.DATA:
            self._take_data(flags, number, payload)
        elif kind == frames.HEADERS:
            self._take_headers(flags, number, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._take_window_update(number, frames.number(payload))
        elif kind == frames.RST_STREAM:
            self._take_reset(number)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self._patience.spend()
                self.output.write(frames.ping(bytes(payload), frames.ACK))
        elif kind == frames.SETTINGS:
            self._take_settings(flags, payload)
        elif kind == frames.CONTINUATION:
            self._take_continuation(flags, number, payload)
        else:  # PRIORITY, GOAWAY and what we do not know ask for nothing
            self._patience.spend()

    def _check_order(self, kind: int, flags: int, number: int) -> None:
        """Settings come first, and nothing comes between the parts of a block of headers."""
        if self._block is None:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS after the preface")
            self._timers.stop_head()
        elif kind != frames.CONTINUATION or number != self._block_of[0]:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "expected the rest of the headers")

    def _take_data(self, flags: int, number: int, payload: memoryview) -> None:
        length = len(payload)
        self._room -= length
        if self._room < 0:
            raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window allows")
        if self._room < CONNECTION_WINDOW // 2:
            self.output.write(frames.window_update(0, CONNECTION_WINDOW - self._room))
            self._room = CONNECTION_WINDOW
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.PADDED:
            payload = frames.unpadded(payload, flags)
        if not payload and not ended:
            self._patience.spend()
        stream = self._streams.get(number)
        if stream:
            stream.take(payload, length, ended)
        elif self._is_idle(number):
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"DATA for stream {number} before its begin")

    def _take_headers(self, flags: int, number: int, payload: memoryview) -> None:
        block = frames.fragment(payload, flags) if flags & (frames.PADDED | frames.HAS_PRIORITY) else bytes(payload)
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._open(number, block, ended)
            return
        self._block = bytearray(block)
        self._block_of = (number, ended)
        self._fragments = 1
        self._timers.await_head()

    def _take_continuation(self, flags: int, number: int, payload: memoryview) -> None:
        if self._block is None:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block += payload
        self._fragments += 1
        if self._fragments > self.MAX_FRAGMENTS or len(self._block) > frames.MAX_CONTROL_BYTES:
            raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, "too many headers")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._timers.stop_head()
            self._open(number, block, self._block_of[1])

    def _open(self, number: int, block: bytes, ended: bool) -> None:
        """The headers of a request, or its trailers, are whole."""
        if number <= self._last_stream or self._is_leaving:
            self._headers.skip(block)
            stream = self._streams.get(number)
            if stream and ended:
                stream.take(memoryview(b""), 0, ended=True)
            elif stream:
                raise BrokenStream(ErrorCode.PROTOCOL_ERROR, "headers in the middle of a request")
            return
        if not number & 1:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"stream {number} is not a client's")
        self._last_stream = number
        head = self._headers.request(block)
        if len(self._streams) >= MAX_STREAMS:
            raise BrokenStream(ErrorCode.REFUSED_STREAM, "too many streams")
        stream = self._streams[number] = Stream(self, number, self._stream_window, ended)
        stream.receiver = self._accept(stream, head)
        if ended:
            stream.receiver.receive(memoryview(b""), True)

    def _take_window_update(self, number: int, increment: int) -> None:
        if number:
            stream = self._streams.get(number)
            if stream is None:
                if self._is_idle(number):
                    raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"a window for stream {number} before its begin")
                return
            if not increment:
                raise BrokenStream(ErrorCode.PROTOCOL_ERROR, "a window that grows by nothing")
            stream.widen(increment)
            if self.output.waits(stream):
                stream.send_more()
            return
        if not increment:
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, "a window that grows by nothing")
        self.output.widen(increment)

    def _take_reset(self, number: int) -> None:
        self._patience.spend()
        stream = self._streams.get(number)
        if stream:
            stream.break_off()
        elif self._is_idle(number):
            raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"an end of stream {number} before its begin")

    def _take_settings(self, flags: int, payload: memoryview) -> None:
        if flags & frames.ACK:
            if payload:
                raise BrokenConnection(ErrorCode.FRAME_SIZE_ERROR, "settings in an acknowledgement")
            return
        self._patience.spend()
        for name, value in frames.read_settings(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                self._change_windows(value)
            elif name == Setting.MAX_FRAME_SIZE:
                self.output.limit_frames(value)
            elif name == Setting.HEADER_TABLE_SIZE:
                if value < DEFAULT_TABLE_BYTES:
                    self.output.shrink_table()
            elif name == Setting.ENABLE_PUSH and value > 1:
                raise BrokenConnection(ErrorCode.PROTOCOL_ERROR, f"a setting of push of {value}")
        self.output.write(frames.SETTINGS_ACK)
        self.output.send_more()

    def _change_windows(self, size: int) -> None:
        if size > MAX_WINDOW:
            raise BrokenConnection(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond its limit")
        change, self._stream_window = size - self._stream_window, size
        try:
            for stream in self._streams.values():
                stream.widen(change)
        except BrokenStream as error:
            raise BrokenConnection(error.code, str(error)) from error

    def _is_idle(self, number: int) -> bool:
        """Whether the peer has not opened it yet, or never can; of those after a farewell nothing is known."""
        return not number & 1 or (number > self._last_stream and not self._is_leaving)

    # Ends.

    def _abort(self, number: int, code: ErrorCode) -> None:
        stream = self._streams.get(number)
        if stream:
            stream.abort(code)
        else:
            self.output.write(frames.reset(number, code))

    def _fail(self, code: ErrorCode, message: str) -> None:
        self.output.write(frames.goaway(self._last_stream, code, message))
        self.close()

    def _break_off(self) -> None:
        for stream in list(self._streams.values()):
            stream.break_off()

    def _close_when_done(self) -> None:
        if self._is_leaving and not self._streams and not self._is_closing:
            self._loop.call_later(self.LINGER_S, self._close)

    def _close(self) -> None:
        if not self._is_closing:
            self.output.close()
            self._is_closing = True
            self._transport.close()  # which waits until all is sent
            self._timers.await_end()
