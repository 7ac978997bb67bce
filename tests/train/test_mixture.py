"""A run on a mixture: real ranks, real kill -9; tokens by source are exact, and another mixture is other data."""

from collections import Counter
from pathlib import Path

import pytest

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.observe.events import Evaluation, Record, Start
from nezha_ds.observe.journal import history
from tests.helpers import runs

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for name, sentence in (("news", "周末七国分争，并入于秦。"), ("law", "公民的人身自由不受侵犯。")):
        text = "\n\n".join(f"第{number}条。{sentence * (number % 7 + 1)}" for number in range(80))
        (root / f"{name}.txt").write_text(text, encoding="utf-8")
        settings = PrepareSettings(inputs=(str(root / f"{name}.txt"),), out=root / name, heldout=0.2, workers=1)
        prepare(settings, progress=False)
    return root


def mixture(folder: Path, texts: Path, news: int = 3, law: int = 1) -> runs.Run:
    parts = ", ".join(
        f'{name} = {{shards = "{texts / name}", weight = {weight}}}' for name, weight in (("news", news), ("law", law))
    )
    return runs.make(folder, Path("-"), "data.shards=", f"data.mixture={{{parts}}}")


def tokens(run: runs.Run) -> Counter[str]:
    counted: Counter[str] = Counter()
    for event in history(run.events()):
        if isinstance(event, Record):
            counted.update(event.source_tokens)
    return counted


@pytest.mark.timing
def test_tokens_by_source_are_exact_across_a_kill_and_another_world_size(texts, tmp_path):
    whole = mixture(tmp_path / "whole", texts)
    printed = whole.finish()
    assert set(tokens(whole)) == {"news", "law"}
    assert "text      tokens of" in printed

    killed = mixture(tmp_path / "killed", texts)
    launcher = killed.start(world_size=2, last_step=10)
    killed.wait_for_step(6, launcher)
    runs.kill_all(launcher)
    assert not killed.checkpoint(12).exists()
    killed.finish()
    assert tokens(killed) == tokens(whole)

    (start, *_) = [event for event in whole.events() if isinstance(event, Start)]
    assert set(start.sources) == {"news", "law"}
    # 12 steps of 16 samples, a quarter of them law's; the texts differ in how full their samples are.
    records = [event for event in whole.events() if isinstance(event, Record)]
    assert all(sum(one.source_tokens.values()) < one.real_tokens for one in records)
    assert tokens(whole)["news"] > 2 * tokens(whole)["law"] > 0
    losses = {event.split: event.loss for event in whole.events() if isinstance(event, Evaluation)}
    assert set(losses) == {"heldout", "heldout/news", "heldout/law"}
    between = sorted([losses["heldout/news"], losses["heldout/law"]])
    assert between[0] < losses["heldout"] < between[1]

    other = mixture(tmp_path / "whole", texts, news=2).attempt()
    assert other.returncode == 2
    assert "was trained with another data.shards or data.mixture; set it back" in other.stderr
    assert "Traceback" not in other.stderr
