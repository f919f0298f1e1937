"""The metrics port: `GET /metrics` for Prometheus, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from stn_serve.access import OPEN, Access
from stn_serve.errors import MethodNotAllowed, NotFound, ServingError
from stn_serve.exposition import Family, render
from stn_serve.http_messages import Receive, Response, Scope, Send, error_response, send_response

CONTENT_TYPE = "text/plain; charset=utf-8"

Snapshot = Callable[[], Awaitable[Sequence[Family]]]


class MetricsApi:
    """The ASGI application; what it shows is taken anew for each scrape."""

    def __init__(self, snapshot: Snapshot, access: Access = OPEN) -> None:
        self._snapshot = snapshot
        self._access = access

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            response = await self._respond(scope)
        except ServingError as error:
            response = error_response(error)
        await send_response(send, response)

    async def _respond(self, scope: Scope) -> Response:
        if scope["path"] != "/metrics":
            raise NotFound("Not Found")
        if scope["method"] != "GET":
            raise MethodNotAllowed("GET")
        self._access.check("metrics", dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
        return Response(render(await self._snapshot()).encode(), content_type=CONTENT_TYPE)
