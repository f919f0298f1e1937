"""Calls that are refused before their message is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from stn_serve import calls
from stn_serve.errors import ServingError

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]
    Handler = grpc.GenericRpcHandler

Check = Callable[[], None]
"""Raises a `ServingError` while nothing more is taken."""


def refusal(method: str, error: ServingError) -> MethodHandler:
    """A handler that answers any method with an error."""

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        with calls.called("grpc", method, context.invocation_metadata):
            calls.fail(error)
            await context.abort(error.grpc_code, str(error))

    # Whatever the method is: a handler of streams waits for no message.
    return grpc.stream_stream_rpc_method_handler(refuse)


class Methods:
    """Where generated code adds its services to a server.

    They are looked up by name and not registered: for each registered method gRPC's asyncio server keeps a future that
    waits for its next call, and after every call it waits anew for all of them. With the methods of this server that
    costs each call 50 us.
    """

    def __init__(self, server: grpc.aio.Server, checks: Mapping[str, Check]) -> None:
        self._server = server
        self._checks = checks

    def add_generic_rpc_handlers(self, handlers: Iterable[Handler]) -> None:
        """Adds services; by the path of a method, `checks` say whether to read a call at all."""
        self._server.add_generic_rpc_handlers([_Guarded(handler, self._checks) for handler in handlers])

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, object]) -> None:
        """Adds nothing."""


class _Guarded(grpc.GenericRpcHandler):
    def __init__(self, handler: Handler, checks: Mapping[str, Check]) -> None:
        self._handler = handler
        self._checks = checks

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        method = handler_call_details.method
        if check := self._checks.get(method):
            try:
                check()
            except ServingError as error:
                return refusal(method.rpartition("/")[2], error)
        return self._handler.service(handler_call_details)
