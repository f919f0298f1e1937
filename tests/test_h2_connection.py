"""The HTTP/2 of the gRPC server against the library h2, and against peers that keep to no rules."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from typing import cast

import grpc
import hpack
import hyperframe.frame as hf
import numpy as np
import pytest
from h2.events import DataReceived
from h2.settings import SettingCodes
from h2_peer import (
    HEADERS,
    MAX_MESSAGE,
    MAX_PENDING,
    PREFACE,
    Channel,
    Peer,
    Service,
    connected,
    hang_up,
    message,
    over_grpc,
    run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stn_serve import grpc_calls
from stn_serve import h2_frames as frames
from stn_serve.compression import decompress
from stn_serve.grpc_calls import Call
from stn_serve.h2_frames import ErrorCode
from stn_serve.h2_patience import Patience
from stn_serve.h2_reservations import Reservations
from stn_serve.h2_stream import WINDOW, Stream
from stn_serve.h2_timers import Timers


def head_of(method: str, *more: tuple[str, str]) -> bytes:
    """Headers that change no table."""
    fields = [*HEADERS[:2], (":path", f"/test/{method}"), *HEADERS[2:], *more]
    return b"".join(
        b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields
    )


ECHO = head_of("echo")


def headers(stream: int, block: bytes = ECHO, flags: int = frames.END_HEADERS) -> bytes:
    return frames.head(frames.HEADERS, flags, stream, len(block)) + block


def data(stream: int, payload: bytes = message(b"hello"), flags: int = frames.END_STREAM) -> bytes:
    return frames.head(frames.DATA, flags, stream, len(payload)) + payload


async def frames_after(port: int, sent: bytes, answers: int = 0) -> list[hf.Frame]:
    """What the server says to bytes, until it hangs up or answers the ping after them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent + frames.ping(b"all-sent"))
    answer, received = b"", list[hf.Frame]()
    try:
        while True:
            while len(answer) < 9:
                part = await reader.read(65_536)
                if not part:
                    return received
                answer += part
            frame, length = hf.Frame.parse_frame_header(memoryview(answer[:9]))
            while len(answer) < 9 + length:
                answer += await reader.read(65_536)
            frame.parse_body(memoryview(answer[9 : 9 + length]))
            answer = answer[9 + length :]
            received.append(frame)
            pongs = [frame for frame in received if getattr(frame, "opaque_data", b"") == b"all-sent"]
            if pongs and sum(isinstance(frame, hf.DataFrame) for frame in received) == answers:
                return received
    except ConnectionError:
        return received
    finally:
        await hang_up(writer)


FAREWELLS = {
    "no settings": (PREFACE[:24] + frames.ping(bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "HTTP/1": (b"GET / HTTP/1.1\r\n\r\n" + bytes(40), ErrorCode.PROTOCOL_ERROR),
    "an even stream": (PREFACE + headers(2), ErrorCode.PROTOCOL_ERROR),
    "data before its stream": (PREFACE + data(1), ErrorCode.PROTOCOL_ERROR),
    "a reset before its stream": (PREFACE + frames.reset(5, 8), ErrorCode.PROTOCOL_ERROR),
    "a window before its stream": (PREFACE + frames.window_update(5, 8), ErrorCode.PROTOCOL_ERROR),
    "a window of nothing": (PREFACE + frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a window that overflows": (PREFACE + frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a setting that overflows": (
        PREFACE + frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "streams' windows that overflow": (
        PREFACE + headers(1, head_of("wait")) + frames.window_update(1, 2**31 - 1 - 65_535)
        + frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 65_536}), ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "frames too small": (PREFACE + frames.settings({frames.Setting.MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR),
    "a push": (PREFACE + frames.settings({frames.Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    "settings that are acknowledged": (PREFACE + frames.head(4, 1, 0, 6) + bytes(6), ErrorCode.FRAME_SIZE_ERROR),
    "a continuation of nothing": (PREFACE + frames.head(9, 4, 1, 0), ErrorCode.PROTOCOL_ERROR),
    "another frame in headers": (PREFACE + headers(1, flags=0) + data(1), ErrorCode.PROTOCOL_ERROR),
    "headers of another stream": (PREFACE + headers(1, flags=0) + frames.head(9, 4, 3, 0), ErrorCode.PROTOCOL_ERROR),
    "a flood of continuations": (
        PREFACE + headers(1, flags=0) + frames.head(9, 0, 1, 0) * 20, ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "long continuations": (
        PREFACE + headers(1, flags=0) + (frames.head(9, 0, 1, 40_000) + bytes(40_000)) * 2, ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "broken headers": (PREFACE + headers(1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a bomb of headers": (
        PREFACE + headers(1, b"\x40\x01x\x7f\x81\x1e" + b"a" * 4000 + b"\xbe" * 10_000), ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "a flood of pings": (PREFACE + frames.ping(bytes(8)) * 2500, ErrorCode.ENHANCE_YOUR_CALM),
    "a flood of settings": (PREFACE + frames.settings({}) * 2500, ErrorCode.ENHANCE_YOUR_CALM),
    "a flood of priorities": (PREFACE + (frames.head(2, 0, 1, 5) + bytes(5)) * 2500, ErrorCode.ENHANCE_YOUR_CALM),
    "a flood of nothing": (PREFACE + headers(1) + data(1, b"", 0) * 2500, ErrorCode.ENHANCE_YOUR_CALM),
    "rapid resets": (
        PREFACE + b"".join(headers(n) + frames.reset(n, 8) for n in range(1, 5001, 2)), ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "rapid resets by the server": (
        PREFACE + b"".join(headers(n) + frames.window_update(n, 0) for n in range(1, 5001, 2)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAREWELLS)
def test_who_breaks_the_connections_rules_is_told_and_hung_up_on(name: str) -> None:
    sent, code = FAREWELLS[name]

    async def test(_: Service, port: int) -> None:
        received = await frames_after(port, sent)
        assert not isinstance(received[-1], hf.PingFrame), "it goes on"
        farewells = [frame.error_code for frame in received if isinstance(frame, hf.GoAwayFrame)]
        assert farewells == [code]

    run(test)


METHOD, SCHEME, AUTHORITY, TYPE = HEADERS
PATH = (":path", "/test/echo")
MALFORMED = {
    "no path": [METHOD, SCHEME, TYPE],
    "no method": [PATH, SCHEME, TYPE],
    "two paths": [METHOD, SCHEME, PATH, PATH, TYPE],
    "an unknown pseudo header": [METHOD, SCHEME, PATH, (":status", "200"), TYPE],
    "a late pseudo header": [METHOD, SCHEME, TYPE, PATH],
    "a name in capitals": [METHOD, SCHEME, PATH, ("X-Y", "1"), TYPE],
    "a header of connections": [METHOD, SCHEME, PATH, ("connection", "close"), TYPE],
    "te": [METHOD, SCHEME, PATH, ("te", "gzip"), TYPE],
    "a line break": [METHOD, SCHEME, PATH, ("x", "a\r\nb"), TYPE],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_reset_and_the_connection_goes_on(name: str) -> None:
    block = hpack.Encoder().encode(MALFORMED[name])

    async def test(_: Service, port: int) -> None:
        received = await frames_after(port, PREFACE + headers(1, block) + headers(3) + data(3))
        assert [(f.stream_id, f.error_code) for f in received if isinstance(f, hf.RstStreamFrame)] == [(1, 1)]
        assert isinstance(received[-1], hf.PingFrame)

    run(test)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (headers(1, head_of("wait")) + data(1) + data(1), ErrorCode.STREAM_CLOSED),
        (headers(1, head_of("ignore")) + data(1, bytes(5), 0) + headers(1, head_of("x")), ErrorCode.PROTOCOL_ERROR),
        (headers(1, head_of("ignore")) + data(1, bytes(16_000), 0) * 17, ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1, head_of("ignore")) + frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1, head_of("ignore")) + frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_who_breaks_a_streams_rules_loses_the_stream(sent: bytes, code: ErrorCode) -> None:
    async def test(_: Service, port: int) -> None:
        received = await frames_after(port, PREFACE + sent)
        assert (1, code) in [(f.stream_id, f.error_code) for f in received if isinstance(f, hf.RstStreamFrame)]
        assert isinstance(received[-1], hf.PingFrame)

    run(test)


def test_what_is_not_known_or_deprecated_is_skipped() -> None:
    priority = frames.head(frames.PRIORITY, 0, 1, 5) + bytes(5)
    unknown = frames.head(77, 255, 3, 3) + b"xyz"
    padded = frames.head(frames.HEADERS, 0x2C, 1, 6 + len(ECHO) + 2) + b"\x02" + bytes(5) + ECHO + bytes(2)
    body = b"\x03" + message(b"padded") + bytes(3)
    sent = PREFACE + priority + unknown + padded + frames.head(0, 9, 1, len(body)) + body

    async def test(_: Service, port: int) -> None:
        received = await frames_after(port, sent, answers=1)
        parts = headers(1, ECHO[:7], 0) + frames.head(9, 4, 1, len(ECHO) - 7) + ECHO[7:]
        received += await frames_after(port, PREFACE + parts + data(1), answers=1)
        assert [f.data for f in received if isinstance(f, hf.DataFrame)] == [message(b"padded"), message(b"hello")]

    run(test)


def test_more_streams_than_allowed_are_refused() -> None:
    calls = b"".join(headers(number, head_of("ignore")) for number in range(1, 2 * 1024 + 3, 2))

    async def test(_: Service, port: int) -> None:
        received = await frames_after(port, PREFACE + calls)
        assert [(f.stream_id, f.error_code) for f in received if isinstance(f, hf.RstStreamFrame)] == [(2049, 7)]

    run(test)


@pytest.mark.parametrize("window", [1, 100, 65_535, 2**20])
def test_an_answer_keeps_to_its_readers_window(window: int) -> None:
    size = 300 if window == 1 else 100_000

    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port, window)
        stream = peer.begin("echo")
        await peer.send(stream, message(bytes(size)))
        fields, received, count = await peer.answer(stream, credit=max(window // 2, 1))
        assert (len(received), fields["grpc-status"]) == (5 + size, "0")
        assert count >= size // window
        await peer.close()

    run(test)


def test_a_peer_that_wants_no_table_of_headers_is_told_that_there_is_none() -> None:
    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        await peer.events()  # the library knows the server's settings
        peer.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
        for _each in range(2):
            stream = peer.begin("echo")
            await peer.send(stream, message(b"x"))
            # It insists on being told, at the begin of the first headers after its change.
            fields, received, _count = await peer.answer(stream)
            assert (fields["grpc-status"], received) == ("0", message(b"x"))
        assert peer.h2.decoder.header_table_size == 0
        await peer.close()

    run(test)


def test_a_large_message_comes_in_without_waiting_for_every_window() -> None:
    updates: list[int] = []

    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port, 2**20)
        stream = peer.begin("echo")
        await peer.send(stream, message(bytes(2**20 - 100)))
        received = (await peer.answer(stream, credit=1))[1]
        assert len(received) == 2**20 - 95
        await peer.close()

    original = frames.window_update

    def counted(stream: int, increment: int) -> bytes:
        updates.append(increment)
        return original(stream, increment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stn_serve.h2_stream.window_update", counted)
        run(test)
    assert len([update for update in updates if update > 1]) == 1


def test_large_messages_wait_for_each_other_and_all_arrive() -> None:
    """Each is nearly as large as allowed, and two such are let in at the same time."""

    async def test(_: Service, port: int) -> None:
        async with connected(port) as channel:
            echo = channel.unary_unary("/test/echo")
            sent = [bytes((number,)) * 1_000_000 for number in range(8)]
            assert await asyncio.gather(*map(echo, sent)) == sent

    run(test)


def test_what_nobody_reads_is_held_back_and_stops_nobody_else() -> None:
    async def test(service: Service, port: int) -> None:
        peer = await Peer.connect(port, 2**20)
        unread = peer.begin("ignore")
        flood = message(bytes(10_000)) * 40
        sending = asyncio.ensure_future(peer.send(unread, flood))
        await service.began.wait()
        await asyncio.sleep(0.1)
        assert not sending.done()
        assert peer.h2.local_flow_control_window(unread) == 0
        sending.cancel()
        await asyncio.wait([sending])
        other = peer.begin("echo")
        await peer.send(other, message(b"neighbour"))
        assert (await peer.answer(other))[1] == message(b"neighbour")
        service.free.set()
        await peer.send(unread, flood[WINDOW:])
        assert (await peer.answer(unread))[1] == message(b"400000")
        await peer.close()

    run(test)


def test_a_stream_of_answers_waits_for_its_reader() -> None:
    async def test(service: Service, port: int) -> None:
        peer = await Peer.connect(port, 1000)
        stream = peer.begin("count")
        await peer.send(stream, message(b"50 996"))
        await asyncio.sleep(0.1)
        fields, received, _ = await peer.answer(stream, credit=500)
        assert (len(received), fields["grpc-status"]) == (50 * 1005, "0")
        stream = peer.begin("count")
        await peer.send(stream, message(b"1000000 996"))
        await asyncio.sleep(0.1)
        peer.h2.reset_stream(stream)
        peer.flush()
        await service.cancelled.wait()
        await peer.close()

    run(test)


def test_who_reads_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Timers, "READ_S", 0.2)

    async def test(service: Service, port: int) -> None:
        peer = await Peer.connect(port, 10)
        stream = peer.begin("echo")
        await peer.send(stream, message(bytes(100)))
        with pytest.raises(ConnectionResetError):
            await peer.answer(stream, credit=0)
        stream = peer.begin("count")
        await peer.send(stream, message(b"50 996"))
        with pytest.raises(ConnectionResetError):
            await peer.answer(stream, credit=0)
        await service.cancelled.wait()
        await peer.close()
        deaf = await Peer.connect(port, 2**30)
        deaf.h2.increment_flow_control_window(2**30)
        stream = deaf.begin("count")
        await deaf.send(stream, message(b"1000 100000"))
        await asyncio.sleep(1)  # its socket is full all the time
        with pytest.raises(ConnectionError):
            await deaf.answer(stream)
        await deaf.close()

    run(test)


def test_a_caller_may_ping_for_each_part_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As grpc-go does, to measure its bandwidth."""
    monkeypatch.setattr(Patience, "MOST", 50.0)
    monkeypatch.setattr(Patience, "PER_SECOND", 0.0)

    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        stream = peer.begin("converse")
        answered = 0
        for _each in range(200):
            await peer.send(stream, message(b"x"), end=False)
            while not any(isinstance(event, DataReceived) for event in await peer.events()):
                pass
            answered += 1
            peer.h2.ping(b"how-fast")
            peer.flush()
        assert answered == 200
        await peer.close()

    run(test)


def test_answers_without_messages_wait_for_a_reader_too() -> None:
    """Who asks on and reads nothing meets the limit of streams, and no answer piles up."""
    calls = b"".join(headers(number, head_of("no-such-method")) for number in range(1, 200_001, 2))

    async def test(_: Service, port: int) -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=connection, limit=1)
            writer.write(PREFACE + calls)
            await asyncio.sleep(0.5)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(65_536):
                    answer += part
            # It was hung up on, and what was answered until then is what its socket held.
            assert answer.count(b"application/grpc") < 20_000
            await hang_up(writer)

    run(test)


@pytest.mark.parametrize("method", ["echo", "join"])
def test_who_pauses_in_the_middle_of_a_message_is_given_up(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(Call, "PAUSE_S", 0.2)

    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        stream = peer.begin(method)
        await peer.send(stream, message(bytes(1000))[:500], end=False)
        fields, _data, _count = await peer.answer(stream)
        assert (fields["grpc-status"], fields["grpc-message"]) == ("4", "a message paused for more than 0.2 s")
        await peer.close()

    run(test)


def test_who_waits_for_others_to_send_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large messages are let in at a time, and these two never end."""
    monkeypatch.setattr(Call, "PAUSE_S", 0.3)

    async def test(_: Service, port: int) -> None:
        peer, slow = await Peer.connect(port, 2**20), [b"", b""]
        for _each in slow:
            await peer.send(peer.begin("echo"), message(bytes(1_000_000))[: WINDOW // 2], end=False)
        stream = peer.begin("echo")
        await peer.send(stream, message(bytes(1_000_000)))
        fields, received, _count = await peer.answer(stream)
        assert (fields["grpc-status"], len(received)) == ("0", 1_000_005)
        await peer.close()

    run(test)


def test_room_that_one_gives_up_goes_to_who_stands_behind() -> None:
    admitted: list[str] = []

    class Waiting:
        def __init__(self, name: str) -> None:
            self.name = name

        def reserved(self, _: int) -> None:
            admitted.append(self.name)

    first, large, small = (cast("Stream", Waiting(name)) for name in ("first", "large", "small"))
    reservations = Reservations(128)
    reservations.reserve(first, 96)
    reservations.reserve(large, 64)
    reservations.reserve(small, 1)
    assert reservations.keeps_waiting(small)
    reservations.forget(large)
    assert admitted == ["first", "small"]


def test_messages_that_wait_to_be_decompressed_take_their_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = asyncio.Event()

    async def later(data: bytes, encoding: str, max_bytes: int) -> bytes:
        await busy.wait()
        return bytes(await decompress(data, encoding, max_bytes))

    monkeypatch.setattr(grpc_calls, "decompress", later)

    async def test(_: Service, channel: Channel) -> None:
        echo = channel.unary_unary("/test/echo")
        sent = np.random.default_rng(0).bytes(700_000) + bytes(200_000)  # of which nothing is won, goes as it is
        calls = [echo(sent, compression=grpc.Compression.Gzip) for _ in range(2 * MAX_PENDING // MAX_MESSAGE)]
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert {code.result() for code in codes if code.done()} == {grpc.StatusCode.UNAVAILABLE}
        busy.set()
        ended = await asyncio.gather(*codes)
        assert ended.count(grpc.StatusCode.OK) == MAX_PENDING // 700_000
        assert set(ended) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}

    over_grpc(test)


def test_who_says_nothing_is_asked_and_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timers, "HEAD_S", 0.2)
    monkeypatch.setattr(Timers, "KEEPALIVE_S", 0.3)
    monkeypatch.setattr(Timers, "ANSWER_S", 0.2)

    async def test(_: Service, port: int) -> None:
        for sent in (b"", PREFACE[:10], PREFACE + headers(1, flags=0)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await asyncio.wait_for(reader.read(), 5)
            await hang_up(writer)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE)
        assert frames.ping(bytes(8)) in await asyncio.wait_for(reader.read(), 5)
        await hang_up(writer)
        peer = await Peer.connect(port)  # answers pings
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(talk(peer), 1)
        await peer.close()

    async def talk(peer: Peer) -> None:
        while True:
            await peer.events()

    run(test)


def test_patience_comes_back() -> None:
    patience = Patience()
    for _ in range(10_000):
        patience.spend()
        patience.restore()


WHOLE = [
    headers(1), data(1), headers(3, head_of("converse")), data(3, message(b"x"), 0), frames.reset(3, 8),
    frames.window_update(0, 7), frames.window_update(1, 7), frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 3}),
    frames.ping(bytes(8)), headers(1, flags=0), frames.head(9, 4, 1, 0), frames.goaway(0, 0, ""),
]  # fmt: skip
BYTES = st.integers(0, 255)
PIECES = st.one_of(
    st.sampled_from(WHOLE),
    st.binary(max_size=40),
    st.builds(
        lambda frame, at, byte: frame[:at] + bytes((byte,)) + frame[at + 1 :],
        st.sampled_from(WHOLE), st.integers(0, 40), BYTES,
    ),
    st.builds(
        lambda kind, flags, stream, payload: frames.head(kind, flags, stream, len(payload)) + payload,
        st.integers(0, 11), BYTES, st.integers(0, 9), st.binary(max_size=30),
    ),
)  # fmt: skip


def test_any_bytes_harm_nobody() -> None:
    """One server meets them all, and answers somebody else at the end; see `h2_peer.run`."""

    async def test(_: Service, port: int) -> None:
        loop = asyncio.get_running_loop()
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(PIECES, max_size=12))
        def fuzz(pieces: list[bytes]) -> None:
            sent = PREFACE + b"".join(pieces)
            asyncio.run_coroutine_threadsafe(asyncio.wait_for(speak(sent), 10), loop).result()

        async def speak(sent: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await hang_up(writer)

        await asyncio.to_thread(fuzz)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000

    run(test)
