"""Changes of `config.pbtxt`, held against protobuf's own reader of its text format."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import IDENT_CONFIG, VISION_CONFIG
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.config_text import replace_file, rewrite

SHIPPED = sorted((Path(__file__).parent.parent / "model_repository").glob("*/config.pbtxt"))
BY_HAND = """# Ours. Ask Ada before you change it.
backend: "onnxruntime"; max_batch_size: 8,
input < name: 'image' data_type: TYPE_UINT8 dims: [8, 8, 1] >
output [{ name: "logi" "ts" data_type: TYPE_FP32 dims: [3] }]  # { not a brace
instance_group [
  {
    kind: KIND_CPU  # no GPU in the rack
    count: 1
  }
]
dynamic_batching {
  # Ada: two at least
  preferred_batch_size: 2
  preferred_batch_size: 4
  default_queue_policy { max_queue_size: 7 }
}
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters [{ key: "other}" value { string_value: "# \\"x\\" {" } }]
"""


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def changed(config: ModelConfig, count: int, threads: str, delay_us: int, preferred: list[int]) -> ModelConfig:
    if not config.instance_group:
        config.instance_group.add()
    config.instance_group[0].count = count
    config.parameters["intra_op_thread_count"].string_value = threads
    config.dynamic_batching.max_queue_delay_microseconds = delay_us
    config.dynamic_batching.preferred_batch_size[:] = preferred
    return config


TEXTS = [*(path.read_text() for path in SHIPPED), IDENT_CONFIG, VISION_CONFIG, BY_HAND, 'name: "bare"', ""]


SIZES = st.lists(st.integers(1, 64), max_size=3)


@given(st.sampled_from(TEXTS), st.integers(0, 9), st.text(), st.integers(0, 10**6), SIZES)
def test_what_is_written_is_what_was_meant(
    text: str, count: int, threads: str, delay_us: int, preferred: list[int]
) -> None:
    wanted = changed(parsed(text), count, threads, delay_us, preferred)
    assert parsed(rewrite(text, wanted)) == wanted


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_the_same_is_left_alone(text: str) -> None:
    assert rewrite(text, parsed(text)) == text


def test_comments_and_layout_stay() -> None:
    text = rewrite(BY_HAND, changed(parsed(BY_HAND), 2, "3", 500, [8]))
    expected = BY_HAND.replace("count: 1", "count: 2").replace('string_value: "1" }', 'string_value: "3" }')
    expected = expected.replace("  preferred_batch_size: 4\n", "").replace("size: 2\n", "size: 8\n")
    expected = expected.replace("7 }\n", "7 }\n  max_queue_delay_microseconds: 500\n")
    assert text == expected.replace('value: { string_value: "3"', 'value { string_value: "3"')


def test_new_fields_come_where_a_reader_expects_them() -> None:
    text = rewrite(SHIPPED[1].read_text(), changed(parsed(SHIPPED[1].read_text()), 2, "1", 0, []))
    lines = SHIPPED[1].read_text().replace("count: 1", "count: 2")
    added = 'parameters {\n  key: "intra_op_thread_count"\n  value {\n    string_value: "1"\n  }\n}\n'
    assert text == lines + added
    one_line = rewrite("dynamic_batching { }", changed(ModelConfig(dynamic_batching={}), 1, "1", 5, []))
    assert one_line.startswith("dynamic_batching { max_queue_delay_microseconds: 5 }\n")


def test_a_file_is_replaced_with_its_permissions_and_nothing_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("old")
    path.chmod(0o640)
    replace_file(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)
    assert list(tmp_path.iterdir()) == [path]
