"""Our gRPC server against grpcio's client, and against calls that its client does not make."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from h2_peer import MAX_MESSAGE, MAX_PENDING, Channel, Peer, Service, connected, message, over_grpc, run

from stn_serve.arrivals import Arrivals
from stn_serve.grpc_head import trailers
from stn_serve.listening import bind


async def status_of(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code().name, refused.value.details() or ""


async def each(*messages: bytes) -> AsyncIterator[bytes]:
    for one in messages:
        await asyncio.sleep(0)
        yield one


def test_all_four_kinds_of_calls() -> None:
    async def test(_: Service, channel: Channel) -> None:
        assert await channel.unary_unary("/test/echo")(b"") == b""
        counted = [answer async for answer in channel.unary_stream("/test/count")(b"3 0")]
        assert counted == [bytes((0, 0, 0, number)) for number in range(3)]
        assert await channel.stream_unary("/test/join")(each(b"a", b"", b"b" * 500_000)) == b"a" + b"b" * 500_000
        assert await channel.stream_unary("/test/join")(each()) == b""
        said = [answer async for answer in channel.stream_stream("/test/converse")(each(b"x", b"y"))]
        assert said == [b"X", b"Y"]

    over_grpc(test)


def test_a_conversation_goes_back_and_forth() -> None:
    async def test(_: Service, channel: Channel) -> None:
        call = channel.stream_stream("/test/converse")()
        for word in (b"a", b"b" * 100_000, b"c"):
            await call.write(word)
            assert await call.read() == word.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    over_grpc(test)


def test_calls_side_by_side_get_their_own_answers() -> None:
    async def test(_: Service, channel: Channel) -> None:
        echo, count = channel.unary_unary("/test/echo"), channel.unary_stream("/test/count")

        async def stream(number: int) -> int:
            return len([answer async for answer in count(b"%d 9000" % number)])

        sent = [str(number).encode() * (number * 37 % 1000) for number in range(300)]
        answers, lengths = await asyncio.gather(
            asyncio.gather(*map(echo, sent)), asyncio.gather(*map(stream, range(20)))
        )
        assert answers == sent
        assert lengths == list(range(20))

    over_grpc(test)


@pytest.mark.parametrize("size", [100, 20_000, 70_000, 300_000, MAX_MESSAGE])
def test_messages_of_any_allowed_size(size: int) -> None:
    async def test(_: Service, channel: Channel) -> None:
        sent = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert await channel.unary_unary("/test/echo")(sent) == sent
        assert await channel.stream_unary("/test/join")(each(sent, sent)) == sent + sent

    over_grpc(test)


def test_a_message_that_is_too_large_is_refused_by_its_length() -> None:
    async def test(_: Service, channel: Channel) -> None:
        large = bytes(MAX_MESSAGE + 1)
        refused = "RESOURCE_EXHAUSTED", f"Received message larger than max ({MAX_MESSAGE + 1} vs. {MAX_MESSAGE})"
        assert await status_of(channel.unary_unary("/test/echo")(large)) == refused
        assert await status_of(channel.stream_unary("/test/join")(each(b"x", large))) == refused
        bomb = channel.unary_unary("/test/echo")(bytes(50 * MAX_MESSAGE), compression=grpc.Compression.Gzip)
        assert (await status_of(bomb))[0] == "RESOURCE_EXHAUSTED"

    over_grpc(test)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(compression: grpc.Compression) -> None:
    async def test(_: Service, channel: Channel) -> None:
        assert await channel.unary_unary("/test/echo")(b"a" * 5000, compression=compression) == b"a" * 5000
        join = channel.stream_unary("/test/join")
        assert await join(each(b"a" * 5000, b"b"), compression=compression) == b"a" * 5000 + b"b"

    over_grpc(test)


def test_what_handlers_say_of_their_failures() -> None:
    async def test(_: Service, channel: Channel) -> None:
        assert await status_of(channel.unary_unary("/test/fail")(b"")) == ("ABORTED", "50 % of ä\n is \u2603")
        assert await status_of(channel.unary_unary("/test/crash")(b"")) == ("UNKNOWN", "internal error: ValueError")
        assert await status_of(channel.unary_unary("/test/nope")(b"")) == ("UNIMPLEMENTED", "Method not found!")
        assert await status_of(channel.unary_unary("/other/echo")(b"")) == ("UNIMPLEMENTED", "Method not found!")

    over_grpc(test)


def test_metadata_reaches_handlers() -> None:
    async def test(_: Service, channel: Channel) -> None:
        tell = channel.unary_unary("/test/tell")
        for _repeated in range(3):
            said = eval(await tell(b"", metadata=[("k", "v w"), ("k", "2"), ("x-bin", b"\0\xff,")], timeout=5))
            own = [pair for pair in said[0] if pair[0] != "user-agent"]
            assert own == [("k", "2"), ("k", "v w"), ("x-bin", b"\0\xff,")]
            assert said[1]
        assert not eval(await tell(b""))[1]
        assert eval(await tell(b"", timeout=1e9))[1]
        assert (await status_of(tell(b"", metadata=[("k", "v" * 17_000)])))[0] == "RESOURCE_EXHAUSTED"

    over_grpc(test)


def test_a_deadline_cancels_the_handler_and_is_answered() -> None:
    async def test(service: Service, port: int) -> None:
        peer = await Peer.connect(port)  # which leaves it to the server to look at the time
        stream = peer.begin("wait", ("grpc-timeout", "50m"))
        await peer.send(stream, message(b""))
        headers, _, _ = await peer.answer(stream)
        assert (headers["grpc-status"], headers["grpc-message"]) == ("4", "Deadline Exceeded")
        await service.cancelled.wait()
        unsent = peer.begin("echo", ("grpc-timeout", "20m"))
        assert (await peer.answer(unsent))[0]["grpc-status"] == "4"
        await peer.close()

    run(test)


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_a_handler_whose_caller_has_gone_is_cancelled(how: str) -> None:
    async def test(service: Service, channel: Channel) -> None:
        call = channel.unary_unary("/test/wait")(b"")
        waiting = asyncio.ensure_future(call.code())
        await service.began.wait()
        if how == "cancel":
            call.cancel()
        else:
            await channel.close()
        await service.cancelled.wait()
        await waiting

    over_grpc(test)


def test_a_stream_that_is_cancelled_ends_its_generator() -> None:
    async def test(service: Service, channel: Channel) -> None:
        call = channel.unary_stream("/test/count")(b"1000000 50000")
        assert len(await call.read()) == 50_004
        call.cancel()
        await service.cancelled.wait()

    over_grpc(test)


def test_a_stop_answers_what_is_in_flight_and_then_hangs_up() -> None:
    async def scenario() -> None:
        service = Service()
        server = service.server()
        with bind("127.0.0.1", 0) as listener:
            await server.start(listener)
            port = listener.getsockname()[1]
            async with connected(port) as channel:
                answered = asyncio.ensure_future(channel.unary_unary("/test/wait")(b"x").code())
                await service.began.wait()
                stopping = asyncio.ensure_future(server.stop(20))
                await asyncio.sleep(0.1)
                late = channel.unary_unary("/test/echo")(b"late")
                assert (await status_of(late))[0] == "UNAVAILABLE"
                assert not stopping.done()
                service.free.set()
                assert await answered is grpc.StatusCode.OK
                await stopping
        with pytest.raises(ConnectionError):
            await Peer.connect(port)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_stop_gives_up_what_takes_too_long() -> None:
    async def scenario() -> None:
        service = Service()
        server = service.server()
        with bind("127.0.0.1", 0) as listener:
            await server.start(listener)
            async with connected(listener.getsockname()[1]) as channel:
                call = asyncio.ensure_future(channel.unary_unary("/test/wait")(b"x").code())
                await service.began.wait()
                await server.stop(0.05)
                assert await call is grpc.StatusCode.UNAVAILABLE
                assert service.cancelled.is_set()

    asyncio.run(asyncio.wait_for(scenario(), 20))


UNUSUAL: dict[str, tuple[str, tuple[tuple[str, str], ...], bytes, str, str]] = {
    "no message": ("echo", (), b"", "12", "the call has no message"),
    "half a message": ("echo", (), message(b"hello")[:-1], "13", "the call ends in the middle of a message"),
    "half a message in a stream": (
        "join", (), message(b"a") + b"\0\0", "13", "the call ends in the middle of a message",
    ),
    "an unknown flag": ("echo", (), message(b"hello", 2), "13", "a message begins with the flag 2, expected 0 or 1"),
    "compressed by nothing": ("echo", (), message(b"x", 1), "13", "a message says that it is compressed, its call "),
    "no gzip": ("echo", (("grpc-encoding", "gzip"),), message(b"x", 1), "3", "the request body is not "),
    "an unknown encoding": ("echo", (("grpc-encoding", "br"),), message(b"x"), "12", "messages compressed with 'br' "),
    "a wrong timeout": ("echo", (("grpc-timeout", "soon"),), message(b"x"), "13", "grpc-timeout is not up to eight"),
    "wrong metadata": ("echo", (("x-bin", "?"),), message(b"x"), "13", "binary metadata is not base64: x-bin"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_calls_that_contradict_the_protocol(name: str) -> None:
    method, fields, data, code, details = UNUSUAL[name]

    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        stream = peer.begin(method, *fields)
        await peer.send(stream, data)
        headers, received, _count = await peer.answer(stream)
        assert (headers["grpc-status"], received) == (code, b"")
        assert headers["grpc-message"].startswith(details)
        await peer.close()

    run(test)


def test_messages_that_are_not_whole_take_their_part_of_what_may_be_pending() -> None:
    async def test(_: Service, port: int) -> None:
        slow = [await Peer.connect(port) for _ in range(MAX_PENDING // MAX_MESSAGE)]
        data = message(bytes(MAX_MESSAGE))
        begun = [(peer, peer.begin("echo")) for peer in slow]
        for peer, stream in begun:
            await peer.send(stream, data[:-1], end=False)
            await peer.taken()
        other = await Peer.connect(port)
        stream = other.begin("echo")
        await other.send(stream, data[:1000], end=False)
        headers, _received, _count = await other.answer(stream)
        assert headers["grpc-status"] == "14"
        assert headers["grpc-message"].endswith(f"more would exceed the {MAX_PENDING} allowed")
        for peer, stream in begun:
            await peer.send(stream, data[-1:])
            assert (await peer.answer(stream))[0]["grpc-status"] == "0"
        stream = other.begin("echo")
        await other.send(stream, data)
        assert (await other.answer(stream))[0]["grpc-status"] == "0", "what was held is free again"
        for peer in (*slow, other):
            await peer.close()

    run(test)


def test_a_message_arrives_until_it_is_whole_or_its_call_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arrivals, "LAPSE_S", 60.0)

    async def test(service: Service, port: int) -> None:
        peer = await Peer.connect(port)
        data = message(bytes(1000))
        whole, gone = peer.begin("wait"), peer.begin("echo")
        for stream in (whole, gone):
            await peer.send(stream, data[:100], end=False)
        await peer.taken()
        assert len(service.arrivals) == 0, "what has not begun is not asked about"
        for stream in (whole, gone):
            await peer.send(stream, data[100:500], end=False)
        await peer.taken()
        assert len(service.arrivals) == 2
        await peer.send(whole, data[500:])
        await service.began.wait()
        assert len(service.arrivals) == 1
        service.free.set()
        await peer.answer(whole)
        peer.h2.reset_stream(gone)
        await peer.taken()
        assert len(service.arrivals) == 0
        late = peer.begin("echo", ("grpc-timeout", "500m"))
        await peer.send(late, data[:500], end=False)
        await peer.taken()
        assert len(service.arrivals) == 1
        assert (await peer.answer(late))[0]["grpc-status"] == "4"
        assert len(service.arrivals) == 0
        await peer.close()

    run(test)


def test_the_ways_to_compress_and_to_cut_a_message() -> None:
    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        for encoding, packed in (("gzip", gzip.compress(b"hello")), ("deflate", zlib.compress(b"hello"))):
            stream = peer.begin("join", ("grpc-encoding", encoding))
            for byte in message(packed, 1) + message(b"!"):
                await peer.send(stream, bytes((byte,)), end=False)
            await peer.send(stream, b"")
            assert (await peer.answer(stream))[1] == message(b"hello!")
        await peer.close()

    run(test)


def test_what_is_no_call_gets_an_http_status() -> None:
    async def test(_: Service, port: int) -> None:
        peer = await Peer.connect(port)
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/"), ("te", "trailers")]
        for method, status in (("GET", "405"), ("POST", "415")):
            stream = peer.h2.get_next_available_stream_id()
            peer.h2.send_headers(stream, [(":method", method), *fields[1:]], end_stream=True)
            peer.flush()
            assert (await peer.answer(stream))[0] == {":status": status}
        await peer.close()

    run(test)


def test_details_that_callers_have_chosen_are_not_kept() -> None:
    tracemalloc.start()
    for number in range(20):
        assert len(trailers(grpc.StatusCode.NOT_FOUND, f"no model '{number}{'x' * 2**20}'")) < 10_000
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**20
