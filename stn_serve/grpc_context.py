"""What a handler of gRPC calls knows of its call: the part of `grpc.ServicerContext` that is used here."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc

from stn_serve.grpc_head import Head, Metadata


class Aborted(Exception):
    """Ends a handler; the status is in its context."""


class Context:
    """Of one call."""

    __slots__ = ("_deadline_s", "_head", "code", "details")

    def __init__(self, head: Head) -> None:
        self._head = head
        self._deadline_s = None if head.timeout_s is None else asyncio.get_running_loop().time() + head.timeout_s
        self.code = grpc.StatusCode.OK
        self.details = ""

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside its messages; values of names that end in `-bin` are bytes."""
        return self._head.invocation_metadata

    def time_remaining(self) -> float | None:
        """Seconds until nobody waits for the answer; None for one that always will."""
        if self._deadline_s is None:
            return None
        return max(self._deadline_s - asyncio.get_running_loop().time(), 0.0)

    def set_code(self, code: grpc.StatusCode) -> None:
        """How the call ends."""
        self.code = code

    def set_details(self, details: str) -> None:
        """Why it ends so."""
        self.details = details

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """End the call with an error."""
        self.code, self.details = code, details
        raise Aborted(details)
