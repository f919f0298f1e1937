from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from stn_serve.grpc_beginnings import BEGINNING_BYTES, MAX_TEXT_BYTES, Beginning, read_beginning
from stn_serve.grpc_messages import MessageReader, framed
from stn_serve.proto.image_prediction_pb2 import PredictRequest

TEXTS = st.text(max_size=200)


def is_short(text: str) -> bool:
    return len(text.encode()) <= MAX_TEXT_BYTES


@given(TEXTS, TEXTS, TEXTS, st.binary(max_size=600))
def test_a_message_says_at_its_beginning_which_model_it_asks_for(
    name: str, version: str, request_id: str, content: bytes
) -> None:
    images = PredictRequest(model_name=name, model_version=version, id=request_id, images=[content])
    tensors = service_pb2.ModelInferRequest(
        model_name=name, model_version=version, id=request_id, raw_input_contents=[content]
    )
    expected = Beginning(name, version, request_id if is_short(request_id) else "")
    known = name and is_short(name) and is_short(version)
    for message in (images, tensors):
        assert read_beginning(message.SerializeToString()[:BEGINNING_BYTES]) == (expected if known else None)


@given(st.binary(max_size=BEGINNING_BYTES))
def test_any_bytes_name_a_model_or_none(data: bytes) -> None:
    beginning = read_beginning(data)
    assert beginning is None or beginning.model


@given(st.binary(min_size=BEGINNING_BYTES, max_size=2 * BEGINNING_BYTES), st.lists(st.integers(0, 800), max_size=5))
def test_a_message_has_begun_when_enough_of_it_has_come(message: bytes, cuts: list[int]) -> None:
    data, reader, at = framed(message), MessageReader(1000), 0
    for cut in sorted({min(cut, len(data) - 1) for cut in cuts}):
        reader.add(memoryview(data)[at:cut])
        at = cut
        assert reader.take() is None
        expected = message[:BEGINNING_BYTES] if cut - 5 >= BEGINNING_BYTES else None
        assert reader.beginning(BEGINNING_BYTES) == expected
    reader.add(memoryview(data)[at:])
    assert reader.take() == (message, False)
