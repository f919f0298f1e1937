"""Frames against the library hyperframe."""

from __future__ import annotations

from collections.abc import Iterator

import hyperframe.frame as hf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_serve import h2_frames as frames
from stn_serve.h2_frames import BrokenConnection, ErrorCode, FrameReader, Setting

STREAMS = st.integers(1, 2**31 - 1)
FRAMES = st.one_of(
    st.builds(
        lambda s, d, p: hf.DataFrame(s, d, pad_length=p, flags=["PADDED"]), STREAMS, st.binary(), st.integers(0, 9)
    ),
    st.builds(lambda s, d: hf.DataFrame(s, d, flags=["END_STREAM"]), STREAMS, st.binary(max_size=500)),
    st.builds(lambda s, d: hf.HeadersFrame(s, d, flags=["END_HEADERS"]), STREAMS, st.binary(max_size=50)),
    st.builds(lambda d: hf.PingFrame(opaque_data=d), st.binary(min_size=8, max_size=8)),
    st.builds(lambda s, n: hf.WindowUpdateFrame(s, n), STREAMS, STREAMS),
    st.builds(lambda s: hf.RstStreamFrame(s, 8), STREAMS),
    st.builds(lambda v: hf.SettingsFrame(settings={4: v, 5: 20_000}), STREAMS),
)


def cut(data: bytes, lengths: list[int]) -> Iterator[bytes]:
    for length in lengths:
        yield data[:length]
        data = data[length:]
    yield data


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 40), max_size=30))
def test_frames_are_found_however_they_are_cut(sent: list[hf.Frame], lengths: list[int]) -> None:
    data = frames.PREFACE + b"".join(frame.serialize() for frame in sent)
    reader = FrameReader(16_384)
    read: list[tuple[int, int, bytes, int]] = []
    begun = b""  # of DATA, which comes in parts
    for part in cut(data, lengths):
        for kind, flags, stream, piece in reader.read(part):
            begun += piece
            if kind != frames.DATA or flags & frames.END_STREAM or flags & frames.PADDED:
                read.append((kind, stream, begun, flags))
                begun = b""
    assert [(kind, stream, payload) for kind, stream, payload, _ in read] == [
        (frame.type, frame.stream_id, frame.serialize_body()) for frame in sent
    ]
    for frame, (_, _, payload, flags) in zip(sent, read, strict=True):
        if isinstance(frame, hf.DataFrame):
            assert frames.unpadded(memoryview(payload), flags) == frame.data


@given(STREAMS, st.integers(1, 2**31 - 1), st.binary(min_size=8, max_size=8))
def test_what_is_sent_is_read_by_others(stream: int, number: int, data: bytes) -> None:
    sent = {
        frames.window_update(stream, number): hf.WindowUpdateFrame(stream, number),
        frames.reset(stream, ErrorCode.CANCEL): hf.RstStreamFrame(stream, 8),
        frames.ping(data, frames.ACK): hf.PingFrame(opaque_data=data, flags=["ACK"]),
        frames.settings({Setting.MAX_FRAME_SIZE: number}): hf.SettingsFrame(settings={5: number}),
        frames.goaway(stream, 11, "calm"): hf.GoAwayFrame(0, stream, 11, b"calm"),
        frames.SETTINGS_ACK: hf.SettingsFrame(flags=["ACK"]),
    }
    for ours, theirs in sent.items():
        assert ours == theirs.serialize()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (frames.head(frames.DATA, 0, 1, 16_385), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.DATA, 0, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.head(frames.HEADERS, 0, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.head(frames.PING, 0, 0, 9), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.PING, 0, 1, 8), ErrorCode.PROTOCOL_ERROR),
        (frames.head(frames.SETTINGS, 0, 0, 5), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.SETTINGS, 0, 1, 6), ErrorCode.PROTOCOL_ERROR),
        (frames.head(frames.RST_STREAM, 0, 1, 3), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.WINDOW_UPDATE, 0, 1, 0), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.GOAWAY, 0, 0, 7), ErrorCode.FRAME_SIZE_ERROR),
        (frames.head(frames.PUSH_PROMISE, 0, 1, 4), ErrorCode.PROTOCOL_ERROR),
        (frames.head(99, 0, 1, 70_000), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_wrong_frames_are_found_out_by_their_first_bytes(frame: bytes, code: ErrorCode) -> None:
    with pytest.raises(BrokenConnection) as broken:
        list(FrameReader(16_384).read(frames.PREFACE + frame))
    assert broken.value.code == code


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", frames.PREFACE[:-1] + b"x"])
def test_another_protocol_is_found_out_at_once(data: bytes) -> None:
    with pytest.raises(BrokenConnection, match="speaks HTTP/2 only"):
        list(FrameReader(16_384).read(data))


@pytest.mark.parametrize("payload", [b"", b"\x05abcd", b"\x01"])
def test_padding_is_no_longer_than_its_frame(payload: bytes) -> None:
    with pytest.raises(BrokenConnection):
        frames.unpadded(memoryview(payload), frames.PADDED)
