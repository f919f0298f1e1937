"""Calls that are refused before their message is read: for their headers, or for how it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from stn_serve import calls
from stn_serve.access import Access
from stn_serve.arrivals import Arrival
from stn_serve.errors import ServingError
from stn_serve.grpc_access import check_access
from stn_serve.grpc_beginnings import read_beginning
from stn_serve.grpc_context import Context
from stn_serve.grpc_head import Head
from stn_serve.inference import Inference

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]


class Admission:
    """Asked for every call."""

    def __init__(self, access: Access) -> None:
        """Admit whom `access` lets in."""
        self._access = access

    def __call__(self, head: Head) -> MethodHandler | None:
        """Who answers in its place; None if the call may be read."""
        try:
            check_access(self._access, head)
        except ServingError as error:
            calls.forget_frames(error)
            return refusal(_operation(head), error)
        return None


class RoomCheck:
    """Asked for messages of inference that do not come at once: if there is no room for one, the rest need not come."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def __call__(self, head: Head, beginning: bytes) -> Arrival | None:
        """Let it in; None where it does not say which model it asks for.

        Raises:
            ServingError: the model has no room, or there is none.
        """
        named = read_beginning(beginning)
        if not named:
            return None
        try:
            return self._inference.expect(named.model, named.version, head.timeout_s)
        except ServingError as error:
            with calls.Call("grpc", _operation(head), lambda: head.invocation_metadata):
                calls.note(*named)
                calls.fail(error)
            raise


def refusal(method: str, error: ServingError) -> MethodHandler:
    """A handler that answers any method with an error."""

    async def refuse(_: object, context: Context) -> None:
        with calls.Call("grpc", method, context.invocation_metadata):
            calls.fail(error)
            await context.abort(error.grpc_code, str(error))

    # Whatever the method is: a handler of streams waits for no message.
    return grpc.stream_stream_rpc_method_handler(refuse)


def _operation(head: Head) -> str:
    return head.method.rpartition("/")[2]
