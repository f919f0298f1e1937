from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.repository import read_config
from stn_serve.scheduling import DEFAULT_MAX_QUEUE_SIZE, BatchingPolicy, QueuePolicy

PRIORITIES = """
max_batch_size: 8
dynamic_batching {
  preferred_batch_size: [2, 6]
  max_queue_delay_microseconds: 100
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 5 }
  priority_queue_policy {
    key: 3
    value {
      timeout_action: DELAY default_timeout_microseconds: 7 allow_timeout_override: true max_queue_size: 9
    }
  }
}
"""


def policy(text: str, pad: bool = False) -> BatchingPolicy:
    return BatchingPolicy.from_config(text_format.Parse(text, ModelConfig()), pad)


@pytest.mark.parametrize(
    ("policy", "requested_us", "expected_s"),
    [
        ({}, 5, None),
        ({"allow_timeout_override": True}, 5, 5e-6),
        ({"timeout_us": 10}, 5, 10e-6),
        ({"timeout_us": 10, "allow_timeout_override": True}, 5, 5e-6),
        ({"timeout_us": 10, "allow_timeout_override": True}, 20, 10e-6),
        ({"timeout_us": 10, "allow_timeout_override": True}, 0, 10e-6),
    ],
)
def test_a_request_may_shorten_its_timeout_where_allowed(
    policy: dict[str, Any], requested_us: int, expected_s: float | None
) -> None:
    assert QueuePolicy(**policy).timeout_s(requested_us) == expected_s


def test_without_dynamic_batching_each_request_runs_alone() -> None:
    assert policy("max_batch_size: 8").max_batch_size == 0


def test_the_policy_comes_from_the_config() -> None:
    rules = policy(PRIORITIES)
    assert (rules.max_batch_size, rules.max_queue_delay_us) == (8, 100)
    assert rules.preferred_batch_sizes == {2, 6}
    assert rules.queue_of(1) == rules.queue_of(2) == QueuePolicy(max_queue_size=5)
    assert rules.queue_of(3) == QueuePolicy(
        max_queue_size=9, timeout_us=7, delays_expired=True, allow_timeout_override=True
    )


def test_a_queue_without_a_bound_has_one() -> None:
    assert policy("max_batch_size: 8 dynamic_batching { }").queue_of(0).max_queue_size == DEFAULT_MAX_QUEUE_SIZE


@pytest.mark.parametrize(("priority", "level"), [(0, 2), (1, 1), (2, 2), (3, 3), (4, 2), (2**63, 2)])
def test_a_priority_that_there_is_not_is_the_default(priority: int, level: int) -> None:
    assert policy(PRIORITIES).level(priority) == level


def test_without_levels_every_priority_is_one() -> None:
    rules = policy("max_batch_size: 8 dynamic_batching { default_priority_level: 4 }")
    assert {rules.level(priority) for priority in (0, 1, 4)} == {0}


@pytest.mark.parametrize(
    ("text", "buckets"),
    [
        ("max_batch_size: 8 dynamic_batching { }", (1, 2, 4, 8)),
        ("max_batch_size: 12", (1, 2, 4, 8, 12)),
        ("max_batch_size: 9 dynamic_batching { preferred_batch_size: [6] }", (1, 2, 4, 6, 8, 9)),
        ("max_batch_size: 1", (1,)),
        ("max_batch_size: 0", ()),
    ],
)
def test_batches_of_a_gpu_have_one_of_a_few_sizes(text: str, buckets: tuple[int, ...]) -> None:
    rules = policy(text, pad=True)
    assert rules.batch_buckets == buckets
    assert all(rules.padded(rows) == min(size for size in buckets if size >= rows) for rows in buckets)
    assert policy(text).batch_buckets == ()
    assert policy(text).padded(3) == 3


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("preferred_batch_size: [2, 9]", "dynamic batching preferred size must be <= max batch size: 9 > 8"),
        ("preferred_batch_size: 0", "dynamic batching preferred size must be positive, is 0"),
        ("priority_levels: 2", r"default priority level must be in range \[1, 2\], is 0"),
        ("priority_levels: 2 default_priority_level: 3", r"in range \[1, 2\], is 3"),
        ("priority_queue_policy { key: 1 value { } }", "priority_queue_policy names level 1"),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "preserve_ordering allows one priority level only",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }",
            "preserve_ordering does not allow the timeout_action DELAY",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, batching: str, message: str) -> None:
    (tmp_path / "config.pbtxt").write_text(f"max_batch_size: 8 dynamic_batching {{ {batching} }}")
    with pytest.raises(ConfigurationError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "batching",
    ["preserve_ordering: true", "preserve_ordering: true priority_levels: 1 default_priority_level: 1", PRIORITIES],
)
def test_what_can_be_honoured_is_not_warned_of(tmp_path: Path, batching: str, caplog: pytest.LogCaptureFixture) -> None:
    text = batching if "max_batch_size" in batching else f"max_batch_size: 8 dynamic_batching {{ {batching} }}"
    (tmp_path / "config.pbtxt").write_text(text)
    read_config(tmp_path)
    assert caplog.messages == []
