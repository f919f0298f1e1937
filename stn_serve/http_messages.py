"""HTTP requests and responses as the handlers see them, to and from ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from stn_serve.errors import (
    Cancelled,
    InvalidRequest,
    MethodNotAllowed,
    PayloadTooLarge,
    PermissionDenied,
    RequestTimeout,
    ServingError,
    Unauthenticated,
    Unavailable,
)
from stn_serve.tensors import Buffer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"
SEGMENTS = {"version": r"\d+"}
"""What a name in a path may stand for, where that is not everything but a slash."""
BODY_TIMEOUT_S = 60.0
"""How long a caller may pause while it sends a body."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler needs of a request."""

    names: Mapping[str, str]
    """What stands in the path, by the names that its route gives."""
    headers: Mapping[str, str]
    query: bytes
    body: Buffer

    @property
    def model(self) -> str:
        """Empty where the path names none; so are the others."""
        return self.names.get("model", "")

    @property
    def version(self) -> str:
        """Digits."""
        return self.names.get("version", "")

    @property
    def region(self) -> str:
        """Of shared memory."""
        return self.names.get("region", "")


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_response(document: object, status: int = 200) -> Response:
    """A document as JSON; numpy scalars and arrays are numbers and lists."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), status)


Handler = Callable[[Request], Awaitable[Response]]


class Route(NamedTuple):
    """A method and a path with `{names}`; a part in brackets may be left out."""

    method: str
    path: str
    group: str
    """Of `access.GROUPS`."""
    handler: Handler

    def pattern(self) -> re.Pattern[str]:
        """Matches a path of this route, and finds the names in it."""
        optional = self.path.replace("[", "(?:").replace("]", ")?")
        return re.compile(
            re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{SEGMENTS.get(name[1], '[^/]+')})", optional)
        )


def error_response(error: ServingError) -> Response:
    """An error as the protocol's JSON."""
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = "1"
    if isinstance(error, PayloadTooLarge | RequestTimeout | Unauthenticated | PermissionDenied):
        headers["connection"] = "close"  # rather than read the rest
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="stn-serve"'
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    return Response(orjson.dumps({"error": str(error)}), error.http_status, JSON, headers)


async def send_response(send: Send, response: Response) -> None:
    """Send a whole response at once."""
    headers = {"content-type": response.content_type, "content-length": str(len(response.body)), **response.headers}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": response.body})


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> Buffer:
    """The whole body, never more than `max_bytes`.

    Raises:
        PayloadTooLarge: it is, or announces to be, larger.
        RequestTimeout: the caller paused for too long.
        Cancelled: the caller has gone before its end.
    """
    if int(headers.get("content-length", "0")) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                event = await receive()
        except TimeoutError as error:
            raise RequestTimeout(f"the request body paused for more than {BODY_TIMEOUT_S:g} s") from error
        if event["type"] == "http.disconnect":
            raise Cancelled("the caller has gone away")
        chunk: bytes = event["body"]
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        if not event["more_body"]:
            return body + chunk if body else chunk
        body += chunk


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is larger than the {max_bytes} bytes allowed")


@contextmanager
def cancelled_on_disconnect(receive: Receive) -> Iterator[None]:
    """Cancel what runs inside when the caller goes away, so that it leaves its queue."""
    task = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task:
            task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not (gone and task):
            raise
        task.uncancel()
        raise Cancelled("the caller has gone away") from None
    finally:
        watcher.cancel()


def json_object(body: Buffer) -> dict[str, Any]:
    """A JSON body that must be an object.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("failed to parse the request JSON buffer: expected an object")
    return document
