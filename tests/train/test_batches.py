"""A batch that grows: every step has exactly its samples, in any world, from any checkpoint; gradients are means."""

import json
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.data.batches import BatchSchedule, Stage
from nezha_ds.data.order import Share
from nezha_ds.errors import ConfigError
from nezha_ds.observe.events import Record
from nezha_ds.train.batches import batch_sizes
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.world import World
from tests.helpers import ranks, runs

GROWING: dict[str, Any] = {
    "train_batch_size": 32,
    "batch_warmup": [{"train_batch_size": 8, "steps": 3}, {"train_batch_size": 16, "steps": 3}],
}

stages = st.lists(st.builds(Stage, st.integers(1, 9), st.integers(1, 5)), max_size=4)
schedules = st.builds(BatchSchedule, st.integers(1, 9), stages.map(tuple))


def spelt_out(schedule: BatchSchedule, steps: int) -> list[int]:
    """The batch of each step, one by one."""
    table = [stage.batch for stage in schedule.stages for _ in range(stage.steps)]
    return (table + [schedule.final] * steps)[:steps]


def warmup(schedule: BatchSchedule) -> list[dict[str, int]]:
    return [{"train_batch_size": stage.batch, "steps": stage.steps} for stage in schedule.stages]


@given(schedules, st.integers(0, 25))
def test_the_table_in_closed_form(schedule: BatchSchedule, step: int) -> None:
    batches = spelt_out(schedule, 60)
    assert [schedule.batch_at(at) for at in range(60)] == batches
    assert [schedule.samples_before(at) for at in range(60)] == [0, *accumulate(batches)][:60]
    assert spelt_out(schedule.after(step), 30) == batches[step : step + 30]


def share_of(schedule: BatchSchedule, step: int, micro_batch: int, world: World) -> Share:
    left = schedule.after(step)
    return Share(schedule.samples_before(step), micro_batch, left.final, world, left.stages)


@pytest.mark.parametrize("size", [1, 2, 3, 96, 1024])
def test_every_step_has_its_samples_in_any_world_and_from_any_step(size: int) -> None:
    """Up to 1,024 ranks: step by step, the ranks' micro-batches are the step's numbers in their order."""
    unit = 3 * 1024
    schedule = BatchSchedule(8 * unit, (Stage(unit, 2), Stage(2 * unit, 1), Stage(6 * unit, 3)))
    micro_batch = batch_sizes("x.json", json_of(schedule, limit=4), size).micro_batch
    assert micro_batch == {1024: 3}.get(size, 4)
    for begin in (0, 1, 2, 5, 6, 9):
        steps = [schedule.batch_at(begin + at) for at in range(4)]
        shares = [share_of(schedule, begin, micro_batch, World(rank, size, 0, 1)) for rank in range(size)]
        counts = [batch // (size * micro_batch) for batch in steps]
        made = [share.numbers(0, sum(counts)).reshape(-1, micro_batch) for share in shares]
        first = schedule.samples_before(begin)
        for at, count in enumerate(counts):
            before = sum(counts[:at])
            numbers = np.concatenate([own[before : before + count].reshape(-1) for own in made])
            assert np.array_equal(numbers, np.arange(first, first + steps[at]))
            assert shares[0].position(before) == first
            assert shares[-1].position(before + count - 1) == (first if count > 1 else shares[0].position(before))
            first += steps[at]


@given(schedules, st.integers(0, 8), st.integers(0, 40), st.integers(1, 9))
def test_blocks_of_any_size_give_the_same_numbers(schedule: BatchSchedule, step: int, start: int, block: int) -> None:
    """Blocks of micro-batches, which the loader makes together, may span stages."""
    share = share_of(schedule, step, 1, World())
    whole = share.numbers(0, 60)
    assert whole.tolist() == list(range(schedule.samples_before(step), schedule.samples_before(step) + 60))
    assert share.numbers(start, block).tolist() == whole[start : start + block].tolist()


def json_of(schedule: BatchSchedule, limit: int) -> dict[str, Any]:
    sizes = {"train_batch_size": schedule.final, "train_micro_batch_size_per_gpu": limit}
    return {**sizes, "batch_warmup": warmup(schedule)}


@given(schedules, st.sampled_from([1, 2, 3, 8]), st.integers(1, 3), st.integers(1, 20))
def test_one_micro_batch_serves_all_stages(schedule: BatchSchedule, size: int, unit: int, limit: int) -> None:
    scaled = BatchSchedule(
        schedule.final * size * unit, tuple(Stage(stage.batch * size * unit, stage.steps) for stage in schedule.stages)
    )
    batch = batch_sizes("x.json", json_of(scaled, limit), size)
    assert batch.micro_batch <= limit
    assert batch.global_batch == batch.micro_batch * batch.accumulation * size
    for step in range(25):
        assert batch.global_batch_at(step) == batch.micro_batch * batch.accumulation_at(step) * size
        assert batch.samples_before(step) == sum(batch.global_batch_at(at) for at in range(step))


REFUSED: list[tuple[Any, int, str]] = [
    ({"steps": 3}, 1, "batch_warmup = {'steps': 3} is not a list of stages; write [{"),
    ([8], 1, "batch_warmup = [8] is not a list of stages"),
    ([{"train_batch_size": 8}], 1, "batch_warmup[0]: steps is not set"),
    (
        [{"train_batch_size": 8, "steps": 0}],
        1,
        "batch_warmup[0]: steps = 0: input should be greater than or equal to 1",
    ),
    ([{"train_batch_size": 8, "steps": 3, "step": 3}], 1, "batch_warmup[0]: unknown key 'step'; did you mean 'steps'?"),
    (
        [{"train_batch_size": 8, "steps": 3}, {"train_batch_size": 12, "steps": 3}],
        8,
        "batch_warmup[1].train_batch_size 12 cannot be divided among 8 ranks; start 4 ranks, or change",
    ),
]


@pytest.mark.parametrize(("written", "size", "expected"), REFUSED, ids=[expected[:30] for _, _, expected in REFUSED])
def test_a_table_that_cannot_be_is_refused(written: Any, size: int, expected: str) -> None:
    tree = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "batch_warmup": written}
    with pytest.raises(ConfigError) as caught:
        batch_sizes("x.json", tree, size)
    assert str(caught.value).startswith(f"x.json: {expected}")


def test_time_left_goes_by_samples() -> None:
    batch = batch_sizes("x.json", json_of(BatchSchedule(8, (Stage(1, 2), Stage(4, 2))), limit=1), 1)
    # 2 x 1, 2 x 4 and 2 x 8 samples in six steps.
    assert [batch.steps_left(step, 6) for step in range(7)] == [26, 25, 24, 5, 4, 1, 0]


def test_deepspeed_does_not_see_the_table(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(runs.DEEPSPEED | GROWING))
    config = load_ds_config(path, 2)
    assert "batch_warmup" not in config.resolved
    assert config.resolved["gradient_accumulation_steps"] == config.batch.accumulation == 4


# ---------------------------------------------------------------------------------------------------------- real ranks

DROPOUT = ("model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, embedded: Path, extensions: Path) -> runs.Run:
    """Twelve steps of 8, 16 and then 32 samples on two ranks under ZeRO-1, checkpoints at 4, 8 and 12."""
    run = runs.make(tmp_path_factory.mktemp("undisturbed"), embedded, *DROPOUT, **GROWING)
    run.finish(world_size=2)
    return run


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
class TestRealRanks:
    def test_gradients_are_means_over_each_batch(self, tmp_path: Path) -> None:
        ranks.run_well(ranks.our_command("tests/train/scripts/growing_batches.py", str(tmp_path), ranks=2))
        found = json.loads((tmp_path / "differences.json").read_text())
        assert found["moved"] > 0.05
        assert max(found[f"stage {stage}"] for stage in range(3)) < 1e-5 * found["moved"]

    def test_steps_samples_epochs_and_rates(self, undisturbed: runs.Run) -> None:
        records = [event for event in undisturbed.events() if isinstance(event, Record)]
        assert [record.samples for record in records] == [8] * 3 + [16] * 3 + [32] * 6
        assert records[-1].epoch / records[2].epoch == pytest.approx((24 + 48 + 192) / 24)
        # The rate goes by updates, whatever their size: three of warm-up, then linear to 0 at the twelfth. Told is that
        # of the next one.
        rates = [min(1, (done + 1) / 3) if done < 3 else 1 - (done - 3) / 9 for done in range(1, 13)]
        assert [record.learning_rate for record in records] == pytest.approx([0.01 * rate for rate in rates])
        state = json.loads((undisturbed.checkpoint(8) / "state.json").read_text())
        assert (state["step"], state["samples"]) == (8, 24 + 48 + 64)

    def test_killed_and_resumed_across_a_change_of_batch(
        self, undisturbed: runs.Run, tmp_path: Path, embedded: Path
    ) -> None:
        """Killed in steps of 32; the checkpoint is of the second step of 16."""
        run = runs.make(tmp_path, embedded, *DROPOUT, **GROWING)
        launcher = run.start(world_size=2, last_step=7)
        run.wait_for_step(7, launcher)
        runs.kill_all(launcher)
        assert "going on from step-00000004" in run.finish(world_size=2)
        assert run.tensors(12) == undisturbed.tensors(12)
        assert run.losses() == undisturbed.losses()

    def test_one_rank_goes_on_where_two_were(self, undisturbed: runs.Run, tmp_path: Path, embedded: Path) -> None:
        """Under ZeRO-2 and with micro-batches of 8 instead of 4: the same samples, so the same losses but for rounding.

        And the table may be changed as long as what was done stays as it was: here a stage of 32 becomes the end.
        """
        table = [*GROWING["batch_warmup"], {"train_batch_size": 32, "steps": 99}]
        changed = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 8, "batch_warmup": table}
        other = runs.make(tmp_path, embedded, *DROPOUT, **GROWING | changed | {"train_batch_size": 8})
        shutil.copytree(undisturbed.folder, other.folder)
        for step in (8, 12):
            shutil.rmtree(other.checkpoint(step))
        assert "going on from step-00000004" in other.finish(world_size=1)
        steps = range(5, 13)
        expected, found = undisturbed.losses(), other.losses()
        assert [found[step] for step in steps] == pytest.approx([expected[step] for step in steps], abs=2e-5)
