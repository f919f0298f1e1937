from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from stn_serve.grpc_beginnings import BEGINNING_BYTES, MAX_TEXT_BYTES, model_of
from stn_serve.grpc_messages import MessageReader, framed
from stn_serve.proto.image_prediction_pb2 import PredictRequest

TEXTS = st.text(max_size=200)


def is_short(text: str) -> bool:
    return len(text.encode()) <= MAX_TEXT_BYTES


@given(TEXTS, TEXTS, st.binary(max_size=600))
def test_the_model_is_read_from_the_first_bytes(name: str, version: str, content: bytes) -> None:
    images = PredictRequest(model_name=name, model_version=version, images=[content]).SerializeToString()
    tensors = service_pb2.ModelInferRequest(
        model_name=name, model_version=version, id="i", raw_input_contents=[content]
    ).SerializeToString()
    expected = (name, version) if name and is_short(name) and is_short(version) else None
    for message in (images, tensors):
        assert model_of(message[:BEGINNING_BYTES]) == expected


@given(st.binary(max_size=BEGINNING_BYTES))
def test_any_bytes_name_a_model_or_none(beginning: bytes) -> None:
    named = model_of(beginning)
    assert named is None or named[0]


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=5))
def test_a_message_begins_when_enough_of_it_has_come(message: bytes, cuts: list[int]) -> None:
    data, reader, at = framed(message), MessageReader(1000), 0
    for cut in sorted({*cuts, len(data)}):
        reader.add(memoryview(data)[at:cut])
        at = max(at, min(cut, len(data)))
        come = at - 5
        expected = message[:BEGINNING_BYTES] if come >= min(BEGINNING_BYTES, len(message)) else None
        assert reader.beginning(BEGINNING_BYTES) == expected
    assert reader.take() == (message, False)


def test_a_compressed_message_does_not_say_how_it_begins() -> None:
    reader = MessageReader(1000)
    reader.add(memoryview(b"\x01" + framed(b"\x0a\x01m")[1:]))
    assert reader.beginning(2) is None
