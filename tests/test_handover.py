from __future__ import annotations

import asyncio
import socket

from stn_serve.handover import Doorway, door, hand_over


def test_a_connection_is_served_by_who_takes_it() -> None:
    async def take_one() -> None:
        ours, theirs = door()
        taken: asyncio.Queue[str] = asyncio.Queue()

        async def adopt(protocol: str, connection: socket.socket) -> None:
            await asyncio.get_running_loop().sock_sendall(connection, b"hello")
            connection.close()
            await taken.put(protocol)

        caller, accepted = socket.socketpair()
        with ours, caller, Doorway(theirs, adopt):
            with accepted:
                assert hand_over(ours, "grpc", accepted)
            assert await taken.get() == "grpc"
            assert caller.recv(16) == b"hello"
            assert caller.recv(16) == b"", "nobody else holds it open"

    asyncio.run(take_one())


def test_a_connection_that_cannot_be_served_is_closed_and_the_next_one_served() -> None:
    async def take_two() -> None:
        ours, theirs = door()
        served = asyncio.Event()

        async def adopt(protocol: str, connection: socket.socket) -> None:
            if protocol == "bad":
                raise ConnectionResetError("the caller has gone")
            connection.close()
            served.set()

        bad_caller, bad = socket.socketpair()
        good_caller, good = socket.socketpair()
        with ours, bad_caller, good_caller, Doorway(theirs, adopt):
            with bad, good:
                assert hand_over(ours, "bad", bad)
                assert hand_over(ours, "good", good)
            await served.wait()
            assert bad_caller.recv(16) == b""

    asyncio.run(take_two())


def test_who_has_gone_takes_nothing() -> None:
    ours, theirs = door()
    caller, accepted = socket.socketpair()
    with ours, caller, accepted:
        theirs.close()
        assert not hand_over(ours, "grpc", accepted)


def test_who_does_not_take_gets_no_more_than_hundreds() -> None:
    ours, theirs = door()
    caller, accepted = socket.socketpair()
    handed = 0
    with ours, theirs, caller, accepted:
        while hand_over(ours, "grpc", accepted):
            handed += 1
    assert handed > 100


def test_what_nobody_has_taken_is_closed_with_the_door() -> None:
    async def adopt(_: str, connection: socket.socket) -> None:
        connection.close()

    async def close_at_once() -> None:
        ours, theirs = door()
        caller, accepted = socket.socketpair()
        with ours, caller:
            with accepted:
                assert hand_over(ours, "grpc", accepted)
            with Doorway(theirs, adopt):
                pass  # the event loop has had no turn
            assert caller.recv(16) == b""

    asyncio.run(close_at_once())
