"""Headers against the library hpack."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_serve.h2_frames import BrokenConnection
from stn_serve.h2_headers import EMPTY_TABLE, HeaderDecoder, changes_table, literal

NAMES = st.sampled_from([b":path", b"te", b"a", b"grpc-timeout", b"authorization", b"x" * 200])
VALUES = st.one_of(st.sampled_from([b"/x", b"trailers", b"", b"v" * 300]), st.binary(max_size=20))
FIELDS = st.tuples(NAMES, VALUES, st.booleans())


def decoder() -> HeaderDecoder[list[tuple[bytes, bytes]]]:
    return HeaderDecoder(lambda headers: [(bytes(name), bytes(value)) for name, value in headers])


@given(st.lists(st.lists(FIELDS, max_size=5), max_size=20), st.booleans())
def test_blocks_mean_what_they_mean_without_a_memory(
    lists: list[list[tuple[bytes, bytes, bool]]], huffman: bool
) -> None:
    encoder, ours = hpack.Encoder(), decoder()
    for fields in lists * 2:  # the second time most are indices only
        block = encoder.encode(fields, huffman=huffman)  # the third says whether it is sensitive
        assert ours.request(block) == [(name, value) for name, value, _ in fields]


def test_the_same_block_means_something_else_when_the_table_has_changed() -> None:
    encoder, ours = hpack.Encoder(), decoder()
    ours.request(encoder.encode([(b"a", b"1")]))
    newest = b"\xbe"  # index 62
    assert ours.request(newest) == ours.request(newest) == [(b"a", b"1")]
    ours.skip(encoder.encode([(b"b", b"2")]))
    assert ours.request(newest) == [(b"b", b"2")]


def test_a_block_that_changes_nothing_is_read_once() -> None:
    read: list[object] = []
    ours = HeaderDecoder(lambda headers: read.append(headers) or len(read))  # type: ignore[func-returns-value]
    block = b"\x88" + literal(b"x", b"y" * 1000)[:0] + literal(b"authorization", b"z" * 200)
    assert [ours.request(block) for _ in range(3)] == [1, 1, 1]
    changing = hpack.Encoder().encode([(b"new", b"1")])
    assert ours.request(changing) == 2
    assert ours.request(block) == 3


@given(NAMES, st.binary(max_size=5000))
def test_literals_are_read_by_others(name: bytes, value: bytes) -> None:
    block = EMPTY_TABLE + literal(name, value)
    assert hpack.Decoder().decode(block, raw=True) == [(name, value)]
    assert not changes_table(literal(name, value))
    assert changes_table(block)


BOMB = b"\x40\x01x\x7f\x80\x1f" + b"a" * 4096
"""One header of 4 KB that is remembered."""


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff" * 16_000,
        b"\x00",
        b"\x00\x05ab",
        b"\xc6",
        b"\x3f\xff\xff\xff\x7f",
        b"\x00\x81\xff\x00",
        BOMB[:-100] + b"\xbe" * 10_000,
    ],
)
def test_broken_and_malicious_blocks_end_the_connection(block: bytes) -> None:
    with pytest.raises(BrokenConnection):
        decoder().request(block)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    ours = decoder()
    try:
        first = ours.request(block)
    except BrokenConnection:
        return
    if not changes_table(block):
        assert ours.request(block) == first
