from __future__ import annotations

import pytest
from google.protobuf import text_format
from onnx_models import VISION_CONFIG, VISION_METADATA
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.gateway_models import agree, signature_of

UNBATCHED = VISION_CONFIG.replace("dynamic_batching { }", "")


def config(change: str = "", text: str = UNBATCHED) -> ModelConfig:
    """As Triton shows it."""
    return text_format.Parse(f'name: "vision" {text} {change}', ModelConfig())


def test_the_configuration_tells_everything() -> None:
    labelled = UNBATCHED.replace("dims: [3] }", 'dims: [3] label_filename: "labels.txt" }')
    signature = signature_of(config(text=labelled), 3)
    assert (signature.name, signature.version, signature.max_batch_size) == ("vision", 3, 4)
    assert signature.metadata == VISION_METADATA
    assert [
        (spec.name, spec.datatype, spec.shape, spec.labels) for spec in (*signature.inputs, *signature.outputs)
    ] == [
        ("image", "UINT8", (-1, 8, 8, 1), ()),
        ("logits", "FP32", (-1, 3), VISION_METADATA.labels),
        ("theta", "FP32", (-1, 1, 2, 3), ()),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sequence_batching { }", "sequence_batching is not passed on"),
        ("model_transaction_policy { decoupled: true }", "a decoupled model_transaction_policy is not passed on"),
        ('input { name: "hint" data_type: TYPE_FP32 dims: 1 optional: true }', "an optional input, 'hint', is not"),
        (
            'input { name: "rag" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
            "allow_ragged_batch of input 'r",
        ),
        ('output { name: "b" data_type: TYPE_BF16 dims: 1 }', "output 'b' is BF16, which is not supported"),
    ],
)
def test_what_cannot_be_passed_on_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        signature_of(config(change), 1)


def test_metadata_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"metadata counts \[3\], but 'logits' has dims \[4\]"):
        signature_of(config(text=UNBATCHED.replace("dims: [3]", "dims: [4]")), 1)


def test_configurations_agree_in_what_callers_see() -> None:
    assert agree(config(), config("instance_group { count: 4 kind: KIND_GPU } dynamic_batching { }"))
    for changed in (("max_batch_size: 4", "max_batch_size: 8"), ("[8, 8, 1]", "[9, 8, 1]"), ("dark", "black")):
        assert not agree(config(), config(text=UNBATCHED.replace(*changed)))
