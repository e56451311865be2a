"""Rows -> table: means, intervals, pairing and tests, against scipy, hand counts and a closed testing procedure."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from likeness.experiments.paired import holm_adjusted, paired_p
from likeness.experiments.summary import Column, Method, summarise
from likeness.experiments.summary_table import to_csv, to_json, to_markdown
from likeness.metrics.rows import Row

METRIC = "subject_similarity"


def picture(method: str, value: float | None, seed: int, subject: str = "dog", **more: object) -> Row:
    return Row(METRIC, value, method, subject, "a dog", seed, picture=seed, **more)  # type: ignore[arg-type]


def two_methods(count: int = 12) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Pictures of hard and easy seeds; the second method is a little better at each. Shuffled."""
    chance = np.random.default_rng(0)
    one = chance.normal(0.6, 0.1, count)
    other = one + chance.normal(0.03, 0.02, count)
    rows = [picture("base", float(v), s) for s, v in enumerate(one)]
    rows += [picture("LoRA", float(v), s) for s, v in enumerate(other)]
    return [rows[place] for place in chance.permutation(len(rows))], one, other


def test_means_errors_and_counts() -> None:
    """Fails if N/A or NaN counts as 0, a missing row is not counted, or two models' figures are pooled."""
    rows = [picture("a", v, s, model="M") for s, v in enumerate([0.5, 0.7, None, math.nan, 0.9])]
    rows += [picture("a", 0.1, 0, model="other")]
    summary = summarise(rows)
    cell = summary.cells[Method("a"), Column(METRIC, "M")]
    assert cell.estimate is not None and (cell.count, cell.missing) == (3, 2)
    assert (cell.estimate.mean, cell.estimate.error) == pytest.approx((0.7, stats.sem([0.5, 0.7, 0.9])))
    assert summary.columns == (Column(METRIC, "M"), Column(METRIC, "other"))
    assert any("2 models" in note for note in summary.notes)
    assert "(n 3, 2 N/A)" in to_markdown(summary)


def test_the_interval_is_over_pictures_or_over_subjects() -> None:
    """Fails if 40 pictures of 5 subjects, alike within each, are taken for 40 independent values."""
    rows = [
        picture("a", number / 10 + seed / 1e4, seed, f"subject {number}") for number in range(5) for seed in range(8)
    ]
    column = Column(METRIC)
    auto = summarise(rows).cells[Method("a"), column]
    alone = summarise(rows, unit="picture").cells[Method("a"), column]
    few = summarise([row for row in rows if row.subject != "subject 0"])
    assert auto.estimate is not None and alone.estimate is not None
    assert (auto.unit, auto.estimate.units, alone.unit, alone.estimate.units) == ("subject", 5, "picture", 40)
    means = np.arange(5) / 10 + np.arange(8).mean() / 1e4
    want = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=9999, random_state=0)
    assert (auto.estimate.low, auto.estimate.high) == pytest.approx(want.confidence_interval, abs=0.012)
    assert auto.estimate.error > 2 * alone.estimate.error
    assert few.cells[Method("a"), column].unit == "picture" and any("4 subjects" in note for note in few.notes)


def test_tests_are_paired_by_subject_prompt_and_seed() -> None:
    """Fails if rows are paired by their order, or the tests are unpaired: a small gain on hard and easy seeds is seen
    by a paired test alone."""
    rows, one, other = two_methods()
    (test,) = summarise(rows, baseline="base").tests
    assert (test.one, test.other, test.pairs) == ("LoRA", "base", 12)
    assert test.p_t == pytest.approx(stats.ttest_rel(other, one).pvalue)
    assert test.p_wilcoxon == pytest.approx(stats.wilcoxon(other, one).pvalue)
    assert test.mean == pytest.approx((other - one).mean()) and test.low < test.mean < test.high
    assert stats.ttest_ind(other, one).pvalue > 0.3 > 0.01 > (test.holm_t or 1)


def test_a_picture_without_a_figure_leaves_its_pair_and_unpaired_ones_are_left_out() -> None:
    """Fails if N/A is taken for 0 in a difference, or a seed that one method lacks shifts all pairs."""
    rows, one, other = two_methods()
    gone = [row if (row.method, row.seed) != ("base", 3) else picture("base", None, 3) for row in rows]
    gone = [row for row in gone if (row.method, row.seed) != ("LoRA", 5)]
    (test,) = summarise(gone, baseline="base").tests
    kept = [place for place in range(12) if place not in (3, 5)]
    assert test.pairs == 10 and test.p_t == pytest.approx(stats.ttest_rel(other[kept], one[kept]).pvalue)


def test_places_in_a_batch_matter_only_where_seeds_do_not_tell_pictures_apart() -> None:
    """Fails if a method that drew fewer prompts is paired by place, or four pictures of one seed are one value."""
    rows, one, other = two_methods()
    moved = [replace(row, picture=row.picture + 7) if row.method == "LoRA" else row for row in rows]  # type: ignore[operator]
    (test,) = summarise(moved, baseline="base").tests
    assert test.pairs == 12 and test.p_t == pytest.approx(stats.ttest_rel(other, one).pvalue)
    (batch,) = summarise([replace(row, seed=1) for row in rows], baseline="base").tests
    assert batch.pairs == 12 and batch.p_t == test.p_t


def test_subjects_are_the_units_of_tests_too() -> None:
    """Fails if the interval is over subjects and the test beside it over pictures."""
    chance = np.random.default_rng(2)
    gain = chance.normal(0.05, 0.05, 6)
    rows = [
        picture(method, 0.5 + chance.normal(0, 0.01) + (gain[number] if method == "LoRA" else 0), seed, f"s{number}")
        for method in ("base", "LoRA")
        for number in range(6)
        for seed in range(4)
    ]
    (test,) = summarise(rows, baseline="base").tests
    means = {m: [np.mean([r.value for r in rows if (r.method, r.subject) == (m, f"s{n}")]) for n in range(6)] for m in
             ("base", "LoRA")}  # fmt: skip
    assert test.pairs == 6 and test.p_t == pytest.approx(stats.ttest_rel(means["LoRA"], means["base"]).pvalue)


def test_differences_without_spread() -> None:
    """Fails if equal methods give NaN in the table, or a constant gain p = 0."""
    assert paired_p(np.zeros(5)) == (None, 1.0)
    assert paired_p(np.full(5, 0.25)) == (None, None)
    same = [picture(method, 0.1 * seed, seed) for method in ("a", "b") for seed in range(4)]
    assert "| – | 1.000 |" in to_markdown(summarise(same))


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_procedure(values: list[float]) -> None:
    """Fails if it steps up, forgets to be monotone, or counts wrongly. Oracle: a hypothesis' adjusted p is the largest
    Bonferroni p of all sets of hypotheses that it is in."""
    got = holm_adjusted(values)
    for place in range(len(values)):
        sets = [
            chosen
            for size in range(1, len(values) + 1)
            for chosen in itertools.combinations(range(len(values)), size)
            if place in chosen
        ]
        assert got[place] == max(min(1.0, len(chosen) * min(values[i] for i in chosen)) for chosen in sets)


def test_rows_that_came_by_two_wires_count_once_and_steps_are_methods() -> None:
    """Fails if accumulated rows are counted twice, or checkpoints of one run are pooled."""
    rows = [Row(METRIC, 0.5 + step / 1000 + seed / 100, "LoRA", "dog", "p", seed, step) for step in (200, 50, 100)
            for seed in range(3)]  # fmt: skip
    summary = summarise([*rows, *rows])
    assert [method.label for method in summary.methods] == ["LoRA, step 50", "LoRA, step 100", "LoRA, step 200"]
    assert all(cell.count == 3 for cell in summary.cells.values())
    assert summary.notes[0].startswith("9 rows came twice")
    assert summary.best(Column(METRIC)) == [Method("LoRA", 200)]


def test_costs_stand_last_and_the_cheap_one_is_best() -> None:
    """Fails if a lower-is-better figure is marked at its highest, or costs are tested like scores."""
    rows = [Row("seconds_a_picture", seconds, method) for method, seconds in (("slow", 2.0), ("fast", 1.0))]
    rows += [Row("trained_parameters", 1234567.0, "slow"), *two_methods()[0]]
    summary = summarise(rows)
    assert [column.metric for column in summary.columns] == [METRIC, "seconds_a_picture", "trained_parameters"]
    assert summary.best(Column("seconds_a_picture")) == [Method("fast")]
    assert {test.metric for test in summary.tests} == {METRIC}
    text = to_markdown(summary)
    assert f"{METRIC} ↑" in text and "seconds_a_picture ↓" in text and "1,234,567" in text and "**1**" in text


def test_csv_and_json_say_the_same_and_are_json_safe() -> None:
    """Fails if NaN gets into JSON, which no other program reads, or a figure is missing in one of them."""
    rows = [picture("a", 0.25, 0), picture("b", None, 0), *two_methods()[0]]
    summary = summarise(rows)
    parsed = json.loads(json.dumps(to_json(summary), allow_nan=False))
    lines = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert [line["method"] for line in lines] == [figure["method"] for figure in parsed["figures"]]
    for line, figure in zip(lines, parsed["figures"], strict=True):
        assert line["mean"] == ("" if figure["mean"] is None else str(figure["mean"]))
    alone = next(figure for figure in parsed["figures"] if figure["method"] == "a")
    assert (alone["mean"], alone["error"], alone["low"], alone["units"]) == (0.25, None, None, 1)
    empty = next(figure for figure in parsed["figures"] if figure["method"] == "b")
    assert (empty["mean"], empty["count"], empty["missing"]) == (None, 0, 1)


def test_what_cannot_be_is_told() -> None:
    """Fails if a wrong name is heeded silently."""
    rows = two_methods()[0]
    for wrong, words in (
        ({"baseline": "bsae"}, "no method is called 'bsae'"),
        ({"unit": "seed"}, "unit is one of"),
        ({"interval": "normal"}, "interval of"),
    ):
        with pytest.raises(ValueError, match=words):
            summarise(rows, **wrong)
    with pytest.raises(ValueError, match="no figure"):
        summarise([])
