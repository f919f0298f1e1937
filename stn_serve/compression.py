"""gzip and deflate of HTTP bodies, both ways; what comes out of a small body is bounded like any other body."""

from __future__ import annotations

import asyncio
import re
import zlib

from stn_serve.errors import InvalidRequest, PayloadTooLarge, Unsupported
from stn_serve.tensors import Buffer

WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""How zlib calls the two formats."""
LEVEL = 1
"""Tensors compress little; higher levels cost more time than the network would."""
INLINE_BYTES = 16 * 1024
"""Larger bodies are compressed in a thread, so that nobody else waits."""

_CODING = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([\d.]+))?\s*")


async def decompress(body: Buffer, encoding: str, max_bytes: int) -> Buffer:
    """The body that was sent as `Content-Encoding: encoding`.

    Raises:
        Unsupported: another encoding than gzip and deflate.
        InvalidRequest: not that encoding, or cut off.
        PayloadTooLarge: it is larger than `max_bytes`.
    """
    if encoding not in WINDOW_BITS:
        raise Unsupported("Unsupported compression type")
    return await asyncio.to_thread(_decompress, body, encoding, max_bytes)


async def compress(body: bytes, encoding: str) -> bytes:
    """The body in the encoding."""
    if len(body) <= INLINE_BYTES:
        return zlib.compress(body, LEVEL, WINDOW_BITS[encoding])
    return await asyncio.to_thread(zlib.compress, body, LEVEL, WINDOW_BITS[encoding])


def preferred_encoding(accepted: str) -> str | None:
    """The encoding of an answer to `Accept-Encoding: accepted`; None for none."""
    weights: dict[str, float] = {}
    for element in accepted.lower().split(","):
        if coding := _CODING.fullmatch(element):
            weights[coding[1]] = _weight(coding[2])
    best = max(WINDOW_BITS, key=lambda encoding: weights.get(encoding, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def _weight(text: str | None) -> float:
    try:
        return float(text or 1)
    except ValueError:
        return 0.0


def _decompress(body: Buffer, encoding: str, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        data = stream.decompress(body, max_bytes)
        surplus = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise InvalidRequest(f"the request body is not {encoding}: {error}") from error
    if surplus:
        raise PayloadTooLarge(f"the decompressed request body is larger than the {max_bytes} bytes allowed")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the request body is not one whole {encoding} stream")
    return data
