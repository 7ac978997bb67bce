import dataclasses
import json
import math

from nezha_ds.observe.journal import MetricsFile, read_metrics
from nezha_ds.observe.report import summarise, to_text
from tests.observe.samples import evaluation, record, save, start


def test_a_run_with_a_restart_is_summed_up_as_one(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    first = [start(), record(10, loss=9.0), evaluation(10, 8.0), save(10), record(20, loss=1.0), evaluation(20, 1.0)]
    second = [
        start(step=10, time=5000.0),
        record(20, loss=7.0, skipped_steps=2, real_tokens=80_000),
        evaluation(20, 6.5, accuracies={"mlm": 0.25, "span": 0.125}),
        record(30, loss=6.0),
        evaluation(30, 6.9),
        save(30),
        save(30, ok=False),
    ]
    for event in first + second:
        file.update(event)
    file.close()
    summary = summarise(read_metrics(file.path))
    # What the crash threw away (loss 1.0 at step 20) counts for nothing.
    assert (summary.first_loss, summary.last_loss) == (9.0, 6.0)
    assert (summary.best_heldout_loss, summary.best_heldout_step) == (6.5, 20)
    assert summary.heldout_accuracies == {"mlm": 0.25, "span": 0.125}
    assert (summary.run, summary.attempts, summary.step, summary.target_steps) == ("demo", 2, 30, 2000)
    assert (summary.steps, summary.skipped_steps, summary.saves) == (30, 2, 2)
    assert summary.tokens_per_second == 4000.0
    assert summary.seconds == 36.0
    assert summary.phase_seconds["forward"] == 9.0 and summary.phase_seconds["checkpoint"] == 0.0
    assert summary.source_tokens == {"news": 81_000, "law": 27_000}
    text = to_text(summary)
    assert "tokens of news 81k (75.0%), law 27k (25.0%)" in text
    assert "best loss 6.500 at step 20, accuracy mlm 25.0%, span 12.5%" in text
    assert "forward 25%" in text and "other 3%" in text
    json.dumps(dataclasses.asdict(summary), allow_nan=False)


def test_a_loss_that_is_not_a_number_is_never_the_best():
    events = [evaluation(1, math.nan), evaluation(2, 5.0), evaluation(3, math.nan)]
    assert summarise(events).best_heldout_loss == 5.0
    assert summarise(events[:1]).best_heldout_loss is None


def test_only_the_named_split_decides():
    events = [evaluation(1, 3.0, split="train"), evaluation(2, 5.0)]
    assert summarise(events).best_heldout_loss == 5.0
    assert summarise(events, split="train").best_heldout_loss == 3.0


def test_a_run_that_did_nothing_can_be_told_too():
    summary = summarise([])
    assert summary.step == 0 and summary.last_loss is None
    assert "not evaluated" in to_text(summary) and "nothing timed" in to_text(summary)
