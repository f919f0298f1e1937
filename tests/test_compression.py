from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_serve.compression import INLINE_BYTES, compress, decompress, preferred_encoding
from stn_serve.errors import InvalidRequest, PayloadTooLarge, ServingError, Unsupported
from stn_serve.tensors import Buffer

LIMIT = 100_000


def inflate(body: bytes, encoding: str = "gzip", limit: int = LIMIT) -> Buffer:
    return asyncio.run(decompress(body, encoding, limit))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, LIMIT])
def test_there_and_back(encoding: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    packed = asyncio.run(compress(body[:size], encoding))
    assert (gzip if encoding == "gzip" else zlib).decompress(packed) == body[:size]
    assert inflate(packed, encoding) == body[:size]


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    assert len(bomb) < LIMIT
    with pytest.raises(PayloadTooLarge, match="the decompressed request body is larger than the 100000 bytes allowed"):
        inflate(bomb)


def test_one_byte_too_many_is_too_many() -> None:
    assert len(inflate(gzip.compress(bytes(LIMIT)))) == LIMIT
    with pytest.raises(PayloadTooLarge):
        inflate(gzip.compress(bytes(LIMIT + 1)))


@pytest.mark.parametrize(
    ("body", "encoding", "error", "message"),
    [
        (b"", "gzip", InvalidRequest, "not one whole gzip stream"),
        (b"plain", "gzip", InvalidRequest, "the request body is not gzip"),
        (gzip.compress(b"x"), "deflate", InvalidRequest, "the request body is not deflate"),
        (gzip.compress(b"x" * 99)[:-1], "gzip", InvalidRequest, "not one whole gzip stream"),
        (gzip.compress(b"x") + b"more", "gzip", InvalidRequest, "not one whole gzip stream"),
        (b"x", "br", Unsupported, "Unsupported compression type"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(body: bytes, encoding: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inflate(body, encoding)


@given(st.binary(max_size=64), st.sampled_from(["gzip", "deflate"]), st.integers(0, 30))
def test_any_bytes_are_a_body_or_are_refused(data: bytes, encoding: str, cut: int) -> None:
    for body in (data, gzip.compress(data)[:cut] + data):
        try:
            assert len(inflate(body, encoding)) <= LIMIT
        except ServingError:
            continue


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("br", None),
        ("identity", None),
        ("", None),
        ("gzip;q=x, ;;,", None),
    ],
)
def test_the_answer_takes_an_encoding_that_is_accepted(accepted: str, encoding: str | None) -> None:
    assert preferred_encoding(accepted) == encoding
