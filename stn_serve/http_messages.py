"""HTTP requests and responses as the handlers see them, to and from ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from stn_serve.errors import Cancelled, InvalidRequest, PayloadTooLarge, ServingError, Unavailable

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler needs of a request."""

    model: str
    version: str
    headers: Mapping[str, str]
    query: bytes
    body: bytes | bytearray


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


def error_response(error: ServingError) -> Response:
    """An error as the protocol's JSON."""
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = "1"
    if isinstance(error, PayloadTooLarge):
        headers["connection"] = "close"  # rather than read what is too much
    return Response(orjson.dumps({"error": str(error)}), error.http_status, JSON, headers)


async def send_response(send: Send, response: Response) -> None:
    """Send a whole response at once."""
    headers = {"content-type": response.content_type, "content-length": str(len(response.body)), **response.headers}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": response.body})


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes | bytearray:
    """The whole body, never more than `max_bytes`.

    Raises:
        PayloadTooLarge: it is, or announces to be, larger.
        Cancelled: the caller has gone before its end.
    """
    if int(headers.get("content-length", "0")) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        event = await receive()
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


def json_object(body: bytes | bytearray) -> dict[str, Any]:
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
