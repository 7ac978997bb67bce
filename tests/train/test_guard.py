"""Numbers that are none never reach the weights, and losses that jump are counted: with DeepSpeed's real engines."""

import json
import shutil
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nezha_ds.errors import Exit
from nezha_ds.files import sha256_of
from nezha_ds.observe.events import Evaluation, Trouble
from nezha_ds.train.checkpoint import MANIFEST, read_state
from nezha_ds.train.dump import read_dump
from nezha_ds.train.guard import FEWEST, WINDOW, Attempt, Guard, is_sound, spike_limit
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.replay import replay
from nezha_ds.world import World
from tests.helpers import ranks, runs
from tests.train import checkpoints
from tests.train.poison import run_poisoned
from tests.train.scripts.gradients_under_zero import KINDS

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}

# ------------------------------------------------------------------------------------------------- what a spike is

losses = st.lists(st.floats(0.1, 20), min_size=FEWEST, max_size=WINDOW)


def falling(steps: int, noise: float) -> np.ndarray:
    """A loss curve as of pretraining, in nats: fast at first, then slowly."""
    return 2 + 8 * np.exp(-np.arange(steps) / 300) + np.random.default_rng(1).normal(0, noise, steps)


def spikes_in(curve: np.ndarray, deviations: float = 6.0) -> list[int]:
    recent: deque[float] = deque(maxlen=WINDOW)
    found = []
    for step, loss in enumerate(curve.tolist()):
        if loss > spike_limit(recent, deviations):
            found.append(step)
        recent.append(loss)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.004, 0.1])
def test_a_loss_that_falls_with_noise_has_no_spikes(noise):
    assert spikes_in(falling(5000, noise)) == []


def test_jumps_are_found_also_many_of_them():
    curve, jumps = falling(3000, 0.03), [*range(1500, 1530, 3), 2000, 2999]
    curve[jumps] += 1.0
    assert spikes_in(curve) == jumps


def test_a_rise_for_good_is_followed():
    """So no run is left without updates for more than half a window."""
    curve = falling(2000, 0.03)
    curve[1000:] += 2.0
    found = spikes_in(curve)
    assert found == [*range(1000, 1000 + len(found))]
    assert 0 < len(found) <= WINDOW // 2 + 1


@given(recent=losses, deviations=st.floats(1, 20))
def test_the_limit_is_above_the_median_and_as_loose_as_asked(recent, deviations):
    limit = spike_limit(recent, deviations)
    assert np.median(recent) < limit <= spike_limit(recent, deviations + 1)
    assert spike_limit(recent[: FEWEST - 1], deviations) == float("inf")
    assert spike_limit(sorted(recent), deviations) == limit


def guard(precision="fp32", gradient=1.0, skip_spikes=0.0, recent=()):
    """A guard over an engine of one gradient, and what it tells."""
    told = []
    engine = SimpleNamespace(
        config=SimpleNamespace(precision=precision),
        device=torch.device("cpu"),
        partitioned=True,
        gradients=lambda: [(None, torch.tensor([gradient]))],
    )
    state = checkpoints.state(0).model_copy(update={"counters": {"losses": list(recent)}})
    made = Guard(engine, Ranks(World()), skip_spikes, state, checkpoints, told.append)  # type: ignore[arg-type]
    return made, told


def attempt(*totals: float) -> Attempt:
    return Attempt(40, (), (), [torch.tensor(total) for total in totals])


@pytest.mark.parametrize(("skip_spikes", "applied"), [(0.0, True), (8.0, False), (1000.0, True)])
def test_a_spike_is_left_out_only_where_the_recipe_says(skip_spikes, applied):
    made, told = guard(skip_spikes=skip_spikes, recent=falling(400, 0.03)[200:].tolist())
    assert made.check(attempt(4.0, 5.0))
    assert told == []
    assert made.check(attempt(9.0, 11.0)) == applied
    assert [(event.what, event.value, event.step, event.skipped) for event in told] == (
        [] if skip_spikes == 1000 else [("spike", 10.0, 41, not applied)]
    )
    assert made.losses[-1] == 10.0
    assert len(made.losses) == WINDOW


def test_gradients_of_fp16_are_the_loss_scalers_business():
    made, told = guard(precision="fp16", gradient=float("inf"))
    assert made.check(attempt(4.0))
    assert told == []


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("where", ["weights", *checkpoints.KEYS])
def test_every_weight_and_moment_counts(where, bad):
    """And no finite number, however large: 3e38 is one whose square leaves fp32."""
    sizes = {"a": 5, "b": 3}
    (slices,) = checkpoints.cut(sizes, [])
    values = {key: {name: torch.ones(size) for name, size in sizes.items()} for key in checkpoints.KEYS}
    engine = checkpoints.PretendedEngine(slices, World(), values)
    assert is_sound(engine, Ranks(World()))  # type: ignore[arg-type]
    tensor = slices[1].of(slices[1].owner) if where == "weights" else values[where]["b"]
    tensor[2] = bad
    assert is_sound(engine, Ranks(World())) == (bad == 3e38)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ where DeepSpeed has gradients


@pytest.fixture(scope="module")
def engines(tmp_path_factory, extensions, warm):
    folder = tmp_path_factory.mktemp("engines")
    ranks.run_well(ranks.our_command("tests/train/scripts/gradients_under_zero.py", str(folder), ranks=2))
    return json.loads((folder / "results.json").read_text())


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_deepspeeds_own_norm(engines, kind):
    assert engines.keys() == set(KINDS)
    for own, deepspeeds in engines[kind]["norms"]:
        assert own > 0
        # Without ZeRO DeepSpeed keeps none in fp32; in bf16 it rounds the norm.
        if deepspeeds is not None:
            assert own == pytest.approx(deepspeeds, rel=1e-2 if "bf16" in kind else 1e-5)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_dropped_leaves_no_trace(engines, kind):
    assert engines[kind]["difference"] == 0
    one, other = engines[kind]["counters"]
    assert one == other
    assert one["updates"] == 3
    assert engines[kind]["global_steps"] == [4, 3]


# --------------------------------------------------------------------------------- a gradient of one rank, in bf16


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, embedded, extensions, warm):
    """Eight steps on two ranks in bf16 under ZeRO-1, dropout on."""
    run = runs.make(tmp_path_factory.mktemp("undisturbed"), embedded, "train.steps=8", **BF16)
    run.finish(world_size=2)
    return run


@pytest.fixture(scope="module")
def diverged(tmp_path_factory, embedded, extensions, warm):
    """The same, but for a NaN in a gradient of rank 1 in step 6; and how it ended."""
    run = runs.make(tmp_path_factory.mktemp("diverged"), embedded, "train.steps=8", **BF16)
    return run, run_poisoned(run, "gradient:6", world_size=2)


@pytest.mark.ranks
def test_all_ranks_stop_before_the_update(diverged):
    run, ended = diverged
    assert [code for code, _ in ended] == [Exit.DIVERGED] * 2, ended
    text = ended[0][1]
    assert "nezha-ds: step 6: the norm of the gradients is nan, and its update is not applied" in text
    assert f"`nezha-ds replay {run.folder / 'dumps' / 'step-00000006'}`" in text
    assert "Traceback" not in text + ended[1][1]
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000004"]
    (event,) = [event for event in run.events() if isinstance(event, Trouble)]
    assert (event.step, event.what, event.skipped) == (6, "gradient", False)
    assert max(run.losses()) == 5


@pytest.mark.ranks
def test_the_dump_holds_the_whole_step(diverged, undisturbed):
    run, _ = diverged
    (folder,) = (run.folder / "dumps").iterdir()
    assert folder.name == "step-00000006"
    dump, weights, batches = read_dump(folder)
    assert [[batch.samples for batch in own] for own in batches] == [[4, 4], [4, 4]]
    assert len({int(number) for own in batches for batch in own for number in batch.sample_ids}) == 16
    assert np.mean(dump.losses) == pytest.approx(undisturbed.losses()[6], rel=1e-4)
    assert (dump.step, dump.device, dump.precision, dump.unsound_weights) == (6, "cpu", "bf16", {})
    unsound = {name for name, gradient in dump.gradients.items() if gradient.nonfinite}
    assert "encoder.blocks.1.widen.weight" in unsound
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    # As they were before the step: no update of it is in them.
    assert any(
        not torch.equal(weights[name], tensor)
        for name, tensor in load_file(run.checkpoint(4) / "model.safetensors").items()
    )


@pytest.mark.ranks
def test_a_gradient_that_the_model_did_not_make_is_not_reproduced(diverged):
    run, _ = diverged
    found = replay(run.folder / "dumps" / "step-00000006", "cpu")
    assert all(one.loss == pytest.approx(one.told, rel=1e-2) for one in found.micro_batches)
    assert [line.partition(":")[0] for line in found.differences] == ["encoder.blocks.1"]


@pytest.mark.ranks
def test_without_what_made_it_the_run_goes_on_as_undisturbed(diverged, undisturbed):
    run, _ = diverged
    assert "going on from step-00000004" in run.finish(world_size=2)
    assert run.tensors(8) == undisturbed.tensors(8)
    assert run.losses() == undisturbed.losses()


# -------------------------------------------------------------------------------------------- a spike that is skipped


@pytest.fixture(scope="module")
def spiking(tmp_path_factory, embedded, extensions, warm):
    """44 steps with checkpoints at 36 and 44, a spike in step 40, and an evaluation at the end that is NaN."""
    settings = ("train.steps=44", "train.save_every=36", "train.skip_spikes=8", "train.log_every=4")
    run = runs.make(tmp_path_factory.mktemp("spiking"), embedded, *settings)
    return run, run_poisoned(run, "loss:40,evaluation:41")


@pytest.mark.ranks
def test_a_spike_is_told_and_its_update_left_out(spiking):
    run, ((code, text),) = spiking
    assert code == Exit.DONE, text
    (event,) = [event for event in run.events() if isinstance(event, Trouble)]
    assert (event.step, event.what, event.skipped) == (40, "spike", True)
    assert event.value > 30 > event.limit
    assert "its update was left out" in text
    state = read_state(run.checkpoint(44))
    assert (state.step, state.samples, state.counters["updates"], state.counters["skipped_steps"]) == (44, 704, 43, 0)
    assert len(state.counters["losses"]) == 44


@pytest.mark.ranks
def test_an_evaluation_that_is_no_number_is_told_and_ends_nothing(spiking):
    run, ((code, text),) = spiking
    assert code == Exit.DONE
    (event,) = [event for event in run.events() if isinstance(event, Evaluation)]
    assert event.loss != event.loss
    assert "the heldout loss is nan; training goes on" in text


@pytest.mark.ranks
def test_a_resume_judges_by_the_losses_before_it(spiking, tmp_path, embedded):
    whole, _ = spiking
    run = runs.make(tmp_path, embedded, *whole.settings)
    shutil.copytree(whole.folder, run.folder)
    shutil.rmtree(run.checkpoint(44))
    ((code, text),) = run_poisoned(run, "loss:40,evaluation:41")
    assert code == Exit.DONE, text
    assert "going on from step-00000036" in text
    assert run.tensors(44) == whole.tensors(44)
    assert read_state(run.checkpoint(44)).counters == read_state(whole.checkpoint(44)).counters


# ------------------------------------------------------------------------------------------- weights that are none


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, embedded, extensions, warm):
    """The update of step 8, after which a checkpoint is due, makes a weight NaN."""
    run = runs.make(tmp_path_factory.mktemp("spoilt"), embedded)
    return run, run_poisoned(run, "update:8")


@pytest.mark.ranks
def test_a_state_with_nan_is_never_saved(spoilt):
    run, ((code, text),) = spoilt
    assert code == Exit.DIVERGED, text
    assert "step 8 made weights or moments that are NaN or infinite, and is not saved" in text
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.ranks
def test_a_checkpoint_of_infinite_numbers_is_refused(spoilt, tmp_path, embedded):
    whole, _ = spoilt
    run = runs.make(tmp_path, embedded)
    shutil.copytree(whole.folder, run.folder)
    path = run.checkpoint(4) / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})
    contents = json.loads((path.parent / MANIFEST).read_text())
    contents["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (path.parent / MANIFEST).write_text(json.dumps(contents))
    done = run.attempt()
    assert done.returncode == Exit.REFUSED
    assert "step-00000004 holds weights or moments that are NaN or infinite; remove it to go on" in done.stderr
    assert "Traceback" not in done.stderr
