from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.config_fields import (
    HONOURED,
    IGNORED,
    REFUSED,
    ignored,
    is_leaf,
    present_fields,
    refused,
    treatment,
    value_type,
)


def every_field(descriptor: Descriptor, prefix: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        nested = value_type(field)
        if is_leaf(field) or nested is None:
            yield prefix + field.name
        else:
            yield from every_field(nested, f"{prefix}{field.name}.")


FIELDS = list(every_field(ModelConfig.DESCRIPTOR))


def test_nobody_has_forgotten_a_field_of_the_message() -> None:
    assert len(FIELDS) > 100
    assert [field for field in FIELDS if treatment(field) is None] == []


def test_every_name_is_one_of_the_message_and_has_one_treatment() -> None:
    assert HONOURED - set(FIELDS) == set()
    for listed in (*REFUSED, *IGNORED):
        below = [field for field in FIELDS if field == listed or field.startswith(f"{listed}.")]
        assert below, listed
        assert not HONOURED & set(below), listed
    assert not REFUSED.keys() & IGNORED.keys()


def test_fields_are_found_in_lists_maps_and_empty_messages() -> None:
    config = text_format.Parse(
        """sequence_batching { } version_policy { all { } } batch_input [{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT }]
        model_warmup [{ inputs { key: "x" value { dims: [1] zero_data: true } } }]
        metric_tags { key: "team" value: "vision" } instance_group [{ }, { host_policy: "numa" }]""",
        ModelConfig(),
    )
    assert set(present_fields(config)) == {
        "sequence_batching",
        "version_policy.all",
        "batch_input",
        "batch_input.kind",
        "model_warmup.inputs.dims",
        "model_warmup.inputs.zero_data",
        "metric_tags",
        "instance_group.host_policy",
    }
    assert [path for path, _ in refused(config)] == ["batch_input", "sequence_batching"]
    assert [path for path, _ in ignored(config)] == ["instance_group.host_policy", "metric_tags"]


@pytest.mark.parametrize("text", ["", "dynamic_batching { }", 'name: "m" max_batch_size: 3'])
def test_what_is_honoured_is_not_mentioned(text: str) -> None:
    config = text_format.Parse(text, ModelConfig())
    assert [*refused(config), *ignored(config)] == []
