"""The study of batches compares what it says: equal samples, rates by the rule, and a page from rows."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.data.loader import build_loader
from nezha_ds.shards import read_manifest
from tests.study.batch.__main__ import write
from tests.study.batch.arms import (
    ADAMW,
    FORMS,
    LAMB,
    LARGEST,
    LARGEST_WARMUP,
    OPTIMIZERS,
    SMALLEST,
    SWEEP_SEED,
    WITHOUT_RATIO,
    Form,
    Point,
    base_sweep,
    largest_sweep,
    recipe_of,
    square_root,
    table,
)
from tests.study.batch.reading import compare, differences, sentences
from tests.study.batch.sweep import Results, base_rates, best
from tests.study.batch.training import Model, Result, read_result, stream_of, train, write_result
from tests.study.report import Circumstances
from tests.train.small_text import prepare_small

BASES = {LAMB: 0.004, ADAMW: 0.001, WITHOUT_RATIO: 0.001}
ENTROPY = 6.3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(shards: Path) -> dict[str, Result]:
    """Every optimizer after four steps of eight."""
    return {name: train(Point(name, 8, 0.002, 1, 32), shards, lambda _: None) for name in OPTIMIZERS}


# ------------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_models_see_as_many_samples_once(form: Form) -> None:
    points = [*base_sweep(form), *table(form, BASES), *largest_sweep(form, BASES)]
    assert all(point.steps * point.batch == form.samples for point in points)
    assert all(point.batch % point.micro_batch == 0 for point in points)
    # 68,168 samples of 64 tokens are left when 5% of the documents are held out, and fewer are.
    assert form.samples < 68_168
    assert len({Model(point, Path()).name for point in points}) == len(points)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_range_of_batches_is_the_papers(form: Form) -> None:
    assert (form.batches[0], form.batches[-1]) == (SMALLEST, LARGEST)
    assert LARGEST // SMALLEST == 32_768 // 512 == 64
    assert SWEEP_SEED not in form.seeds
    # 1/5 of the steps at the one end is 1/320 at the other.
    assert LARGEST_WARMUP * SMALLEST / LARGEST == 1 / 320
    updates = {point.warmup for point in table(form, BASES)}
    assert updates == {round(form.samples / LARGEST / 5)}


def test_several_seeds_and_every_optimizer_at_every_batch_once() -> None:
    form = FORMS["full"]
    assert len(form.seeds) >= 3
    found = [(point.optimizer, point.batch, point.seed) for point in table(form, BASES)]
    assert sorted(found) == sorted(
        (name, batch, seed) for name in OPTIMIZERS for batch in form.batches for seed in form.seeds
    )


def test_rates_grow_with_the_square_root_of_the_batch() -> None:
    rates = {(one.optimizer, one.batch): one.rate for one in table(FORMS["full"], BASES)}
    assert (rates[LAMB, 8], rates[ADAMW, 8]) == (0.004, 0.001)
    assert (rates[LAMB, 512], rates[ADAMW, 512]) == (8 * 0.004, 8 * 0.001)
    assert [square_root(1.0, batch) for batch in (8, 32, 128, 512)] == [1, 2, 4, 8]
    rule = [one for one in largest_sweep(FORMS["full"], BASES) if one.rate == rates[one.optimizer, 512]]
    assert [one.optimizer for one in rule] == [LAMB, ADAMW]


def test_samples_and_masks_do_not_depend_on_batch_or_optimizer(shards: Path) -> None:
    vocabulary = folder_vocabulary(shards, read_manifest(shards))

    def seen(point: Point) -> dict[str, torch.Tensor]:
        stream = stream_of(point, recipe_of(point, shards), vocabulary)
        with build_loader(stream, global_batch=point.batch, first=0) as batches:
            parts = [next(batches) for _ in range(256 // point.micro_batch)]
        return {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("input_ids", "mlm_positions", "mlm_labels")
        }

    small = seen(Point(LAMB, 8, 0.004, 1, 512))
    large, other = seen(Point(ADAMW, 256, 0.02, 1, 512)), seen(Point(LAMB, 8, 0.004, 2, 512))
    assert all(torch.equal(small[name], large[name]) for name in small)
    assert not torch.equal(small["input_ids"], other["input_ids"])


def test_without_its_ratio_lamb_is_adamw(trained: dict[str, Result]) -> None:
    ours, theirs = trained[WITHOUT_RATIO], trained[ADAMW]
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert trained[LAMB].loss != pytest.approx(theirs.loss, abs=1e-2)
    assert len({result.tokens for result in trained.values()}) == 1


def test_the_same_point_gives_the_same_numbers(shards: Path, trained: dict[str, Result]) -> None:
    ticks: list[int] = []
    again = train(Point(LAMB, 8, 0.002, 1, 32), shards, ticks.append)
    assert replace(again, seconds=0.0) == replace(trained[LAMB], seconds=0.0)
    assert sum(ticks) == 32


def test_a_step_averages_its_micro_batches(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def clip(parameters: Iterable[torch.Tensor], most: float) -> torch.Tensor:
        norms.append(float(clip_grad_norm_(parameters, most)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    point = Point(ADAMW, 16, 0.002, 1, 16)
    whole = train(point, shards, lambda _: None)
    monkeypatch.setattr("tests.study.batch.arms.MICRO_BATCH", 4)
    parts = train(point, shards, lambda _: None)
    # Not the same to the last digit: a mean of means, and not all micro-batches have as many predictions.
    assert norms[1] == pytest.approx(norms[0], rel=0.1)
    assert parts.loss == pytest.approx(whole.loss, abs=0.02)
    assert parts.tokens == whole.tokens


def test_a_training_that_diverges_is_told_as_such(shards: Path) -> None:
    result = train(Point(ADAMW, 8, 1e30, 1, 64), shards, lambda _: None)
    assert result.loss is None
    assert result.accuracy is None
    row = json.loads(json.dumps(write_result(result), allow_nan=False))
    assert read_result(row).loss is None
    assert "diverged" in Model(Point(ADAMW, 8, 1e30, 1, 64), shards).told(row)


def test_a_row_is_of_its_point_and_text_alone(shards: Path) -> None:
    point = Point(LAMB, 8, 0.002, 1, 32)
    changes: list[dict[str, Any]] = [
        {"optimizer": ADAMW},
        {"batch": 16},
        {"rate": 0.004},
        {"seed": 2},
        {"samples": 64},
    ]
    points = [point, *(replace(point, **change) for change in changes)]
    assert len({Model(one, shards).fingerprint() for one in points}) == len(points)
    assert Model(point, shards).fingerprint() == Model(replace(point), shards).fingerprint()


# ------------------------------------------------------------------------------------------------------- what it says


def made_up(point: Point) -> Result:
    """Best by the rule from 0.004 and 0.001; at 512 LAMB is 1 better, and AdamW diverges with the third seed."""
    wanted = BASES[point.optimizer] * (point.batch / SMALLEST) ** 0.5
    loss = 4.5 + 0.01 * point.seed + abs(point.rate / wanted - 1)
    if point.batch == LARGEST:
        loss += 1.0 if point.optimizer == LAMB else 2.0
    diverged = point.optimizer == ADAMW and point.batch == LARGEST and point.seed == 3
    return Result(
        optimizer=point.optimizer,
        batch=point.batch,
        rate=point.rate,
        seed=point.seed,
        samples=point.samples,
        steps=point.steps,
        warmup=point.warmup,
        tokens=2_000_000 + point.seed,
        parameters=374_132,
        seconds=60.0,
        loss=None if diverged else loss,
        accuracy=None if diverged else 0.2,
    )


def made_up_results(form: Form) -> Results:
    base = [made_up(point) for point in base_sweep(form)]
    bases = base_rates(base)
    return Results(
        base, [made_up(point) for point in table(form, bases)], [made_up(point) for point in largest_sweep(form, bases)]
    )


def test_base_rates_are_the_best_of_each_sweep() -> None:
    results = made_up_results(FORMS["full"])
    assert base_rates(results.base) == BASES
    assert best(results.base, ADAMW).rate == 0.001
    lost = [replace(one, loss=None) if one.rate == 0.001 else one for one in results.base]
    assert best(lost, ADAMW).rate in (0.0005, 0.002)


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ([4.0, 4.1, 4.2], [4.5, 4.6, 4.7], "first"),
        ([4.5, 4.6, 4.7], [4.0, 4.1, 4.2], "second"),
        ([4.0, 4.1, 4.2], [4.1, 4.0, 4.3], "neither"),
        # What is not seen in the digits that are shown is no difference.
        ([4.0, 4.1, 4.2], [4.0001, 4.1001, 4.2001], "neither"),
        ([4.0, None, 4.2], [4.0, 4.1, 4.2], "second"),
        ([4.0, 4.1, None], [None, None, 4.2], "first"),
        ([None, 4.1, 4.2], [4.0, None, 4.2], "neither"),
    ],
)
def test_who_is_better(first: list[float | None], second: list[float | None], found: str) -> None:
    assert compare(first, second) == found


def test_differences_are_taken_seed_by_seed() -> None:
    assert differences([4.0, 5.0], [3.5, 5.25]) == [0.5, -0.25]
    assert differences([4.0, None], [3.5, 5.25]) is None


def test_what_is_said_follows_from_the_numbers() -> None:
    form = FORMS["full"]
    said = " ".join(sentences(made_up_results(form), form, ENTROPY))
    lower = "lower loss at 512; no difference that counts at 8, 32, 128."
    assert f"**LAMB, beside LAMB without the ratio**: {lower}" in said
    assert f"**LAMB, beside AdamW**: {lower}" in said
    assert "**LAMB** is better than counting tokens at every batch, by 0.780 nats at the worst" in said
    assert "**LAMB without the ratio** is no better than counting tokens at 512; it loses most from 128 to 512" in said
    assert "**AdamW** is no better than counting tokens at 512; it loses most from 8 to 32" in said
    assert "and diverges at 512" in said
    assert "0.004 is the best at 8; at 512 the rule's is the best of those that were tried" in said
    assert "LAMB less AdamW: -1.000 nats" in said


def test_a_best_rate_at_the_edge_is_told_as_such() -> None:
    form, results = FORMS["full"], made_up_results(FORMS["full"])
    lowest = replace(results, base=[replace(one, loss=one.rate) for one in results.base])
    assert "0.001 is the best at 8 (the edge of what was tried)" in " ".join(sentences(lowest, form, ENTROPY))
    double = replace(results, largest=[replace(one, loss=-one.rate) for one in results.largest])
    said = " ".join(sentences(double, form, ENTROPY))
    assert "at 512 4 times the rule's (the edge of what was tried), with which the loss is 0.096 nats lower" in said


@pytest.mark.parametrize("name", FORMS)
def test_the_page_comes_from_the_rows(name: str, tmp_path: Path) -> None:
    form, results = FORMS[name], made_up_results(FORMS[name])
    told = Circumstances(name, "2026-01-01", "a command", "a machine", 4082, ENTROPY)
    write(tmp_path, results, told)
    text = (tmp_path / "study-batch.md").read_text(encoding="utf-8")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    rows = [line for line in text.splitlines() if line.startswith(f"| {LARGEST} |")]
    assert len(rows) == 3
    assert ("diverged (1 of 3)" in rows[0]) == (3 in form.seeds)

    written = json.loads((tmp_path / "study-batch.json").read_text(encoding="utf-8"))
    again = [read_result(row) for row in written["results"]]
    swept = [one for one in again if one.seed == SWEEP_SEED]
    sorted_again = Results(
        [one for one in swept if one.batch == SMALLEST],
        [one for one in again if one.seed != SWEEP_SEED],
        [one for one in swept if one.batch == LARGEST],
    )
    write(tmp_path / "again", sorted_again, Circumstances(**written["circumstances"]))
    for file in ("study-batch.md", "study-batch.svg", "study-batch.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_the_plot_has_a_dot_for_each_seed_and_a_cross_for_what_diverged(tmp_path: Path) -> None:
    results = made_up_results(FORMS["full"])
    write(tmp_path, results, Circumstances("full", "2026-01-01", "a command", "a machine", 4082, ENTROPY))
    tree = ElementTree.parse(tmp_path / "study-batch.svg")
    crosses = tree.findall(".//{http://www.w3.org/2000/svg}path")
    dots = tree.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(crosses) == sum(one.loss is None for one in results.all) == 1
    legend = len(OPTIMIZERS) + 2 + 2
    assert len(dots) == legend + sum(one.loss is not None for one in results.all)
