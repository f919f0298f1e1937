from __future__ import annotations

from benchmarks.export_matrix import LABELS, combinations, measure_cells, render, worst_error
from training.stn.sampler import Sampler


def test_every_combination_but_bicubic_volumes() -> None:
    found = combinations()
    assert len(found) == len(set(found)) == 7 * 3 * 4 - 4
    assert all(Sampler(mode, padding) for _, mode, padding in found)
    assert LABELS


def test_a_row_of_the_table() -> None:
    cells = list(measure_cells([("projective", "bicubic", "fill")]))
    reports = cells[0].reports
    assert [report.failures for report in reports.values()] == [[], [], []]
    assert worst_error(reports["fp32"], "logits") < 1e-5
    assert worst_error(reports["int8"], "theta") < 1e-5
    text = render(cells)
    assert text.count("| projective | bicubic | fill |") == 1
    assert text.strip().endswith("Failed: 0.")
