"""The study measures what it says: recovery by loops, equal tokens, results made once, and a page from rows."""

import json
import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.corpus.inspect import folder_vocabulary
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import Vocabulary
from tests.study import measure
from tests.study.__main__ import write
from tests.study.arms import ARMS, BASE, BATCH, CHARACTERS, FORMS, SPAN_BOTH, VIEWS, WORDS, Form, View, recipe_of
from tests.study.comparison import QUESTIONS, verdict
from tests.study.harness import HELDOUT, finished, run
from tests.study.measure import SIZES, Score, classes, look, recovery
from tests.study.plot import bounds
from tests.study.report import Circumstances
from tests.study.training import Result, read_result, train_arm, write_result
from tests.train.small_text import prepare_small

SHORT = Form("short", steps=1, seeds=(1,), arms=tuple(ARMS))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def vocabulary(shards: Path) -> Vocabulary:
    return folder_vocabulary(shards, read_manifest(shards))


@pytest.fixture(scope="module")
def results(shards: Path) -> dict[str, Result]:
    """Every arm after one step."""
    return {arm: train_arm(arm, 1, SHORT, shards, lambda: None) for arm in ARMS}


# --------------------------------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("seed", range(20))
def test_recovery_is_what_a_loop_finds(seed: int) -> None:
    draw = random.Random(seed)
    units = np.array([draw.randrange(12) for _ in range(draw.randrange(1, 60))])
    right = np.array([draw.random() < 0.7 for _ in units])
    together: dict[int, list[bool]] = defaultdict(list)
    for unit, one in zip(units.tolist(), right.tolist(), strict=True):
        together[unit].append(one)
    sizes, whole = recovery(units, right)
    assert list(zip(sizes.tolist(), whole.tolist(), strict=True)) == [
        (len(together[unit]), all(together[unit])) for unit in sorted(together)
    ]
    counted = {size: [0, 0] for size in SIZES}
    for one in together.values():
        begin = max(size for size in SIZES if size <= len(one))
        counted[begin][0] += all(one)
        counted[begin][1] += 1
    assert classes(sizes, whole).tolist() == list(counted.values())


class Knowing(nn.Module):
    """Answers right where `knows` says so of (batch, row, place among predictions), and otherwise wrong."""

    def __init__(self, knows: Any) -> None:
        super().__init__()
        self.knows = knows

    def forward(self, batch: Batch) -> Any:
        labels = batch.mlm_labels.clamp(min=0)
        known = torch.tensor([[self.knows(batch, *place) for place in row] for row in _places(labels)])
        answers = torch.where(known, labels, labels + 1)
        return SimpleNamespace(mlm_logits=10.0 * nn.functional.one_hot(answers, 21129).float(), span_logits=None)


def _places(labels: torch.Tensor) -> list[list[tuple[int, int]]]:
    return [[(row, place) for place in range(labels.shape[1])] for row in range(len(labels))]


def _begins_a_run(batch: Batch, row: int, place: int) -> bool:
    positions = batch.mlm_positions[row]
    return place == 0 or bool(positions[place] != positions[place - 1] + 1)


@pytest.mark.parametrize("name", ["words", "spans"])
def test_who_knows_everything_recovers_everything(name: str, shards: Path, vocabulary: Vocabulary) -> None:
    recipe = recipe_of(ARMS[WORDS], 1, 1, shards)
    (score,) = look(Knowing(lambda *_: True), recipe, vocabulary, VIEWS[name]).values()
    assert score.accuracy == score.share() == score.share(2) == 1
    assert score.loss == pytest.approx(0, abs=2)


def test_who_knows_first_pieces_alone_recovers_spans_of_one_alone(shards: Path, vocabulary: Vocabulary) -> None:
    recipe = recipe_of(ARMS[WORDS], 1, 1, shards)
    (score,) = look(Knowing(_begins_a_run), recipe, vocabulary, VIEWS["spans"]).values()
    runs = sum(total for _, total in score.recovered.values())
    assert score.accuracy == runs / score.predictions
    assert {
        size: right == (total if size == 1 else 0) for size, (right, total) in score.recovered.items()
    } == dict.fromkeys(score.recovered, True)


def test_a_masked_word_is_a_unit_with_all_of_its_tokens(shards: Path, vocabulary: Vocabulary) -> None:
    recipe = recipe_of(ARMS[WORDS], 1, 1, shards)
    seen: set[int] = set()
    for batch, words in measure._batches(recipe, vocabulary, VIEWS["words"]):
        units = measure.word_numbers(words, batch.mlm_positions.numpy())
        for row in range(batch.samples):
            real = batch.mlm_labels[row] != IGNORE
            masked = set(batch.mlm_positions[row][real].tolist())
            begins = [*np.flatnonzero(words[row]).tolist(), int(batch.lengths[row]) - 1]
            for begin, end in pairwise(begins):
                # Behind a [SEP] a word begins anew: the place of the [SEP] is no part of the one before it.
                inside = [at for at in range(begin, end) if at in masked]
                numbers = {int(units[row][list(batch.mlm_positions[row]).index(at)]) for at in inside}
                assert len(numbers) <= 1
                assert not numbers & seen
                seen |= numbers
            assert (batch.input_ids[row][list(masked)] == 103).all()
    assert seen


# ------------------------------------------------------------------------------------------------------------- arms


def test_an_arm_differs_from_the_base_in_what_it_names(tmp_path: Path) -> None:
    def leaves(arm: str) -> dict[str, Any]:
        sections = recipe_of(ARMS[arm], 1, 10, tmp_path).model_dump(mode="json")
        return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}

    for arm in ARMS.values():
        changed = {name for name, value in leaves(arm.name).items() if value != leaves(WORDS)[name]}
        assert changed == set(arm.changes)


def test_all_arms_see_as_many_tokens_and_are_asked_the_same(results: dict[str, Result]) -> None:
    assert len({result.tokens for result in results.values()}) == 1
    for name, view in VIEWS.items():
        if "method" in view.masking:
            assert len({result.views[name]["mlm"].predictions for result in results.values()}) == 1
    assert [arm for arm, result in results.items() if "span" in result.views["spans"]] == [SPAN_BOTH]
    assert results["learned-absolute"].parameters - results[WORDS].parameters == VIEWS["longer"].length * 128


def test_no_sample_comes_twice() -> None:
    # 68,168 samples of 64 tokens are left when 5% of the documents are held out, and fewer are.
    assert HELDOUT < 0.05
    assert all(form.steps * BATCH < 68_168 for form in FORMS.values())
    assert BASE["model"]["hidden_dropout_prob"] == 0


def test_the_same_arm_and_seed_give_the_same_numbers(shards: Path, results: dict[str, Result]) -> None:
    again = train_arm(CHARACTERS, 1, SHORT, shards, lambda: None)
    other = train_arm(CHARACTERS, 2, SHORT, shards, lambda: None)
    assert again.views == results[CHARACTERS].views != other.views


def test_what_is_finished_is_not_made_again(shards: Path, tmp_path: Path, results: dict[str, Result]) -> None:
    console = Console(quiet=True)
    run(Form("short", 1, (1,), (WORDS,)), shards, tmp_path, console)
    kept = tmp_path / f"{WORDS}-1.json"
    made = kept.stat().st_mtime_ns
    both = Form("short", 1, (1,), (WORDS, CHARACTERS))
    found = run(both, shards, tmp_path, console)
    assert kept.stat().st_mtime_ns == made
    # Another process, with one thread, finds what this one did.
    assert [result.arm for result in found] == list(both.arms)
    for result in found:
        assert result.views["words"]["mlm"].loss == pytest.approx(
            results[result.arm].views["words"]["mlm"].loss, abs=1e-3
        )
    # Another number of steps is another result.
    assert finished(WORDS, 1, both, shards, tmp_path)
    assert finished(WORDS, 1, Form("short", 2, (1,), (WORDS,)), shards, tmp_path) is None


# ------------------------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize(
    ("gaps", "more", "found"),
    [
        ([0.3, 0.31, 0.29], True, "first"),
        ([0.3, 0.31, 0.29], False, "second"),
        ([-0.3, -0.31, -0.29], False, "first"),
        ([0.3, -0.01, 0.29], True, "neither"),
        ([0.1, 0.5, 0.02], True, "neither"),
    ],
)
def test_a_difference_counts_with_one_sign_and_twice_its_deviation(gaps: list[float], more: bool, found: str) -> None:
    assert verdict(gaps, more_is_better=more) == found


def made_up(arm: str, seed: int) -> Result:
    """A row with numbers by which later arms are worse."""
    worse = 0.1 * list(ARMS).index(arm) + 0.001 * seed
    recovered = {size: [1000 - round(1000 * worse), 1000] for size in SIZES}
    score = Score(loss=4 + worse, accuracy=0.5 - worse / 2, predictions=10, recovered=recovered)
    views = {name: {"mlm": score} for name in VIEWS}
    if arm == SPAN_BOTH:
        views["spans"] = {"mlm": score, "span": score}
    return read_result(write_result(Result(arm, seed, 10, 1000 + seed, 10**6, 5.0, views)))


@pytest.mark.parametrize("name", FORMS)
def test_the_page_tells_every_comparison_and_comes_from_the_rows(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    rows = [made_up(arm, seed) for arm, seed in form.jobs]
    told = Circumstances(name, "2026-01-01", "a command", "a machine", 4082, 6.3)
    write(tmp_path, rows, told)
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert all(f"## {question.title}" in text for question in QUESTIONS)
    one_line = " ".join(text.split())
    assert f"1,001 to 1,00{form.seeds[-1]} tokens, by seed," in one_line
    assert "functional relative (NEZHA's) is better, as the paper has it" in one_line
    assert "spans masked, MLM alone is better, **against the paper**" in one_line
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120

    written = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    write(
        tmp_path / "again", [read_result(row) for row in written["results"]], Circumstances(**written["circumstances"])
    )
    for file in ("study.md", "study.svg", "study.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_arms_that_saw_other_samples_are_not_compared(tmp_path: Path) -> None:
    rows = [made_up(arm, seed) for arm, seed in FORMS["quick"].jobs]
    rows[-1] = replace(rows[-1], tokens=1)
    with pytest.raises(AssertionError, match="other samples"):
        write(tmp_path, rows, Circumstances("quick", "2026-01-01", "a command", "a machine", 4082, 6.3))


def test_the_plot_is_sound_and_has_a_dot_for_each_seed(tmp_path: Path) -> None:
    rows = [made_up(arm, seed) for arm, seed in FORMS["every-position"].jobs]
    write(tmp_path, rows, Circumstances("every-position", "2026-01-01", "a command", "a machine", 4082, 6.3))
    tree = ElementTree.parse(tmp_path / "study.svg")
    # Two measures of five arms, two of two, and two of two again; three seeds.
    assert len(tree.findall(".//{http://www.w3.org/2000/svg}circle")) == 3 * (2 * 5 + 2 * 2 + 2 * 2)


@pytest.mark.parametrize(("least", "most"), [(4.1, 4.9), (0.0, 0.0), (0.2, 0.2), (3, 31)])
def test_an_axis_holds_its_numbers(least: float, most: float) -> None:
    low, high, step = bounds(least, most)
    assert low <= least <= most < high
    assert 1 <= round((high - low) / step) <= 7


def test_rows_survive_json(results: dict[str, Result]) -> None:
    result = results[SPAN_BOTH]
    row = json.loads(json.dumps(write_result(result)))
    assert write_result(read_result(row)) == write_result(result)
    assert read_result(row).views["spans"]["span"].recovered == result.views["spans"]["span"].recovered


def test_views_need_no_more_than_they_say() -> None:
    assert {view.units for view in VIEWS.values()} == {"", "words", "runs"}
    assert View().length < VIEWS["longer"].length
