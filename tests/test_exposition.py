from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from stn_serve.exposition import Buckets, Family, dump, labels, lasting, load, merge, render

SERIES = labels(version="1", model="digits")


def histogram(*counts: int) -> Family:
    return Family("stn_pose_scale", "histogram", "scale", {SERIES: Buckets((0.5, 1.0), counts, float(sum(counts)))})


WORKER = [
    Family("nv_inference_count", "counter", "rows", {SERIES: 3}),
    Family("nv_inference_pending_request_count", "gauge", "waiting", {SERIES: 2}),
    Family("nv_cpu_memory_total_bytes", "gauge", "memory", {(): 100.0}, merge="max"),
    histogram(1, 0, 2),
]


def parsed(snapshot: list[Family]) -> dict[str, float]:
    """By the parser of Prometheus' client, which adds `_total` to a counter's name: name and labels of every sample."""
    return {
        f"{sample.name}{dict(sorted(sample.labels.items()))}": sample.value
        for family in text_string_to_metric_families(render(snapshot))
        for sample in family.samples
    }


def test_processes_are_added_up_but_not_what_they_share() -> None:
    merged = merge([WORKER, WORKER, [histogram(0, 5, 0)]])
    assert [family.name for family in merged] == [family.name for family in WORKER]
    values = [next(iter(family.samples.values())) for family in merged]
    assert values == [6, 4, 100.0, Buckets((0.5, 1.0), (2, 5, 4), 11.0)]
    assert next(iter(WORKER[0].samples.values())) == 3


def test_a_series_that_only_one_process_has_is_kept() -> None:
    other = [Family("nv_inference_count", "counter", "rows", {labels(model="new", version="2"): 7})]
    [merged] = merge([WORKER[:1], other])
    assert list(merged.samples.values()) == [3, 7]


def test_of_a_process_that_has_ended_the_counts_stay_and_the_state_does_not() -> None:
    assert [family.kind for family in lasting(WORKER)] == ["counter", "histogram"]


def test_a_snapshot_travels_to_another_process() -> None:
    assert load(dump(WORKER)) == WORKER


def test_other_buckets_are_not_added() -> None:
    other = Family("stn_pose_scale", "histogram", "scale", {SERIES: Buckets((0.5,), (1, 1), 1.0)})
    with pytest.raises(ValueError, match="different buckets"):
        merge([[histogram(1, 1, 1)], [other]])


def test_the_text_is_what_prometheus_reads() -> None:
    assert parsed(WORKER) == {
        "nv_inference_count_total{'model': 'digits', 'version': '1'}": 3,
        "nv_inference_pending_request_count{'model': 'digits', 'version': '1'}": 2,
        "nv_cpu_memory_total_bytes{}": 100,
        "stn_pose_scale_bucket{'le': '0.5', 'model': 'digits', 'version': '1'}": 1,
        "stn_pose_scale_bucket{'le': '1', 'model': 'digits', 'version': '1'}": 1,
        "stn_pose_scale_bucket{'le': '+Inf', 'model': 'digits', 'version': '1'}": 3,
        "stn_pose_scale_sum{'model': 'digits', 'version': '1'}": 3,
        "stn_pose_scale_count{'model': 'digits', 'version': '1'}": 3,
    }


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_any_label_and_help_keeps_to_its_line(value: str, text: str) -> None:
    [family] = text_string_to_metric_families(render([Family("a_gauge", "gauge", text, {(("label", value),): 1})]))
    assert [sample.labels for sample in family.samples] == [{"label": value}]
