"""Calls that are refused before their message is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from stn_serve import calls
from stn_serve.access import Access
from stn_serve.errors import ServingError
from stn_serve.grpc_access import check_access
from stn_serve.grpc_context import Context
from stn_serve.grpc_head import Head

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]

Check = Callable[[float | None], None]
"""Raises a `ServingError` while nothing more is taken of callers who wait for so many seconds, None for ever."""


class Admission:
    """Asked for every call."""

    def __init__(self, access: Access, checks: Mapping[str, Check]) -> None:
        """Admit whom `access` lets in, if nothing else speaks against it: `checks`, by the path of a method."""
        self._access = access
        self._checks = checks

    def __call__(self, head: Head) -> MethodHandler | None:
        """Who answers in its place; None if the call may be read."""
        try:
            check_access(self._access, head)
            if check := self._checks.get(head.method):
                check(head.timeout_s)
        except ServingError as error:
            calls.forget_frames(error)
            return refusal(head.method.rpartition("/")[2], error)
        return None


def refusal(method: str, error: ServingError) -> MethodHandler:
    """A handler that answers any method with an error."""

    async def refuse(_: object, context: Context) -> None:
        with calls.Call("grpc", method, context.invocation_metadata):
            calls.fail(error)
            await context.abort(error.grpc_code, str(error))

    # Whatever the method is: a handler of streams waits for no message.
    return grpc.stream_stream_rpc_method_handler(refuse)
