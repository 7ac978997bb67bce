"""The loader's promises: the same samples and masks at any world size, micro-batch and restart; errors are heard."""

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.data.dataset import open_dataset
from nezha_ds.data.loader import Loader, Stream, build_evaluation, build_loader
from nezha_ds.data.order import Share
from nezha_ds.data.pipeline import Pipeline, Statistics
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder
from tests.helpers.processes import wait_for

BATCH = 24
PARTS = ("input_ids", "token_type_ids", "lengths", "mlm_positions", "mlm_labels", "sample_ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    write_folder(path, [random_columns(seed, 300) for seed in range(5)], [random_columns(9, 120)])
    return path


@pytest.fixture(scope="module")
def pipeline(folder) -> Pipeline:
    dataset, _ = open_dataset(DataSettings(shards=str(folder), length=64), "train")
    return Pipeline(dataset, MaskingSettings(), 64, 3, SPECIAL, RANDOM_IDS)


def stream(folder: Path, rank: int, size: int, micro_batch: int, seed: int = 3, **rest) -> Stream:
    data = DataSettings(shards=str(folder), length=64)
    masking = rest.pop("masking", MaskingSettings())
    return Stream(data, masking, seed, micro_batch, World(rank, size, 0, 1), SPECIAL, RANDOM_IDS, **rest)


def loader(folder: Path, rank: int = 0, size: int = 1, micro_batch: int = 4, first: int = 0, **rest) -> Loader:
    return build_loader(stream(folder, rank, size, micro_batch, **rest), global_batch=BATCH, first=first)


def evaluation(folder: Path, rank: int, size: int, micro_batch: int, limit: int) -> list[Batch]:
    with build_evaluation(stream(folder, rank, size, micro_batch), limit=limit) as batches:
        return list(batches)


def join(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in PARTS}


def steps(folder: Path, count: int, size: int, micro_batch: int, first: int = 0, **rest) -> dict[str, torch.Tensor]:
    """The global batches of `count` steps, ranks in order."""
    accumulation = BATCH // (size * micro_batch)
    loaders = [loader(folder, rank, size, micro_batch, first, **rest) for rank in range(size)]
    batches = [next(part) for _ in range(count) for part in loaders for _ in range(accumulation)]
    for part in loaders:
        part.close()
    return join(batches)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in PARTS)


def test_samples_and_masks_do_not_depend_on_ranks_and_micro_batches(folder):
    expected = steps(folder, 30, size=1, micro_batch=24)
    for size, micro_batch in [(1, 1), (2, 3), (3, 8), (24, 1)]:
        assert equal(steps(folder, 30, size, micro_batch), expected)


def test_goes_on_exactly_where_it_was_with_another_world(folder):
    expected = steps(folder, 30, size=1, micro_batch=24)
    with loader(folder, size=2, micro_batch=4) as first:
        for _ in range(3 * 7 + 2):
            next(first)
        position = first.position
    assert position == 7 * BATCH
    rest = steps(folder, 23, size=4, micro_batch=2, first=position)
    assert equal(rest, {name: tensor[position:] for name, tensor in expected.items()})


def test_each_epoch_has_every_sample_once_with_new_masks(folder):
    with loader(folder, micro_batch=1) as batches:
        size = batches.plan_size
        epochs = [join([next(batches) for _ in range(size)]) for _ in range(3)]
    orders = [epoch["sample_ids"].argsort() for epoch in epochs]
    assert all(sorted(epoch["sample_ids"].tolist()) == list(range(size)) for epoch in epochs)
    texts = [restored(epoch)[order] for epoch, order in zip(epochs, orders, strict=True)]
    masks = [epoch["mlm_positions"][order] for epoch, order in zip(epochs, orders, strict=True)]
    for number in (1, 2):
        assert not torch.equal(orders[0], orders[number])
        assert torch.equal(texts[0], texts[number])
        assert (masks[0] != masks[number]).any(dim=1).float().mean() > 0.95


def restored(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """input_ids with the labels put back."""
    ids = batch["input_ids"].clone()
    row, slot = torch.nonzero(batch["mlm_labels"] != IGNORE, as_tuple=True)
    ids[row, batch["mlm_positions"][row, slot]] = batch["mlm_labels"][row, slot]
    return ids


def test_restored_text_is_the_text_of_the_shards(folder):
    with loader(folder, micro_batch=24) as batches:
        found = Counter(restored(join([next(batches) for _ in range(2 * batches.plan_size // 24)])).flatten().tolist())
        epochs = 2 * batches.plan_size // 24 * 24 / batches.plan_size
    tokens = np.concatenate([random_columns(seed, 300).tokens for seed in range(5)])
    text = sum(times for token, times in found.items() if token >= 200)
    assert abs(text / (epochs * len(tokens)) - 1) < 0.01


def test_shapes_types_and_seeds(folder):
    with loader(folder) as batches, loader(folder, seed=4) as others:
        batch, other = next(batches), next(others)
    assert batch.input_ids.shape == batch.token_type_ids.shape == (4, 64)
    assert batch.mlm_positions.shape == batch.mlm_labels.shape == (4, 10)
    assert batch.lengths.shape == batch.sample_ids.shape == (4,)
    assert all(getattr(batch, name).dtype == torch.int64 for name in PARTS)
    assert all(getattr(batch, name).is_contiguous() for name in PARTS)
    assert batch.sample_ids.tolist() != other.sample_ids.tolist()


@pytest.mark.parametrize("method", ["whole-word", "span"])
def test_statistics_are_those_of_the_batches_handed_out(folder, method):
    tokens = masked = 0
    with loader(folder, micro_batch=4, masking=MaskingSettings(method=method)) as batches:
        for _ in range(300):
            made = join([next(batches)])
            masked += int((made["mlm_labels"] != IGNORE).sum())
            tokens += int((restored(made) >= 200).sum())
            statistics = batches.statistics
            assert (statistics.tokens, statistics.masked) == (tokens, masked)
            assert sum(length * times for length, times in enumerate(statistics.word_lengths)) == masked
    assert abs(statistics.mask_rate - 0.15) < 0.005


@pytest.mark.parametrize("limit", [1, 17, 10_000])
def test_evaluation_reads_each_sample_once_whatever_the_ranks(folder, limit):
    def labelled(size: int, micro_batch: int):
        parts = [evaluation(folder, rank, size, micro_batch, limit) for rank in range(size)]
        assert len({len(part) for part in parts}) == 1
        made = join([batch for part in parts for batch in part])
        real = made["sample_ids"] >= 0
        assert (made["mlm_labels"][~real] == IGNORE).all()
        assert (made["lengths"][~real] == 2).all()
        return {name: tensor[real] for name, tensor in made.items()}

    expected = labelled(1, 1)
    whole = len(open_dataset(DataSettings(shards=str(folder), length=64), "heldout")[0].plan)
    count = min(limit, whole)
    assert expected["sample_ids"].tolist() == [at * whole // count for at in range(count)]
    assert equal(labelled(1, 8), expected)
    assert equal(labelled(3, 4), expected)


def test_a_pipeline_makes_each_sample_alone_as_among_others(pipeline):
    samples, epochs = np.array([5, 30, 2, 5]), np.array([0, 1, 9, 0])
    whole, _ = pipeline.make(samples, epochs)
    for at in range(4):
        alone, _ = pipeline.make(samples[at : at + 1], epochs[at : at + 1])
        assert torch.equal(alone.input_ids[0], whole.input_ids[at])
        assert torch.equal(alone.mlm_labels[0], whole.mlm_labels[at])


@pytest.mark.parametrize("copies", [1, 3])
def test_static_masks_repeat_after_as_many_epochs_as_there_are_copies(pipeline, copies):
    static = replace(pipeline, masking=MaskingSettings(static_copies=copies))
    samples = np.arange(20)
    made = [static.make(samples, np.full(20, epoch))[0].mlm_positions for epoch in range(2 * copies + 1)]
    for epoch in range(2 * copies + 1):
        for other in range(epoch):
            assert torch.equal(made[epoch], made[other]) == ((epoch - other) % copies == 0)


@pytest.mark.parametrize("method", ["n-gram", "span"])
def test_groups_of_words_do_not_depend_on_ranks_either(folder, method):
    masking = MaskingSettings(method=method)
    expected = steps(folder, 6, size=1, micro_batch=24, masking=masking)
    assert equal(steps(folder, 6, size=3, micro_batch=2, masking=masking), expected)
    with loader(folder, masking=masking) as batches:
        boundaries = next(batches).span_boundaries
    assert (boundaries is None) == (method != "span")
    if boundaries is not None:
        assert boundaries.shape == (4, 10, 2)
        assert boundaries.dtype == torch.int64


# ------------------------------------------------------------------------------------------------------------- failures


def batches_then(error: Exception | None, count: int = 3, forever: bool = False):
    one = torch.zeros(1, 1, dtype=torch.int64)
    batch = Batch(one, one, one[0], one, one, one[0])
    while count or forever:
        yield batch, Statistics(tokens=1)
        count -= 1
    if error:
        raise error


def bare(made, prefetch: int = 2) -> Loader:
    return Loader(made, share=Share(0, 1, 1, World()), prefetch=prefetch, plan_size=1, fingerprint="")


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_an_error_in_the_thread_reaches_the_consumer_after_the_good_batches():
    with bare(batches_then(DataError("shard x is damaged"))) as batches:
        assert [next(batches) is not None for _ in range(3)] == [True] * 3
        for _ in range(2):
            with pytest.raises(DataError, match="shard x"):
                next(batches)


def test_iteration_ends_with_the_batches_and_after_closing():
    with bare(batches_then(None)) as batches:
        assert len(list(batches)) == 3
        assert batches.statistics.tokens == 3
    with bare(batches_then(None, forever=True)) as batches:
        next(batches)
    assert list(batches) == []
    batches.close()


def test_a_consumer_that_stops_early_leaves_no_thread_behind():
    before = loader_threads()
    for consumed in range(4):
        with bare(batches_then(None, forever=True)) as batches:
            for _ in range(consumed):
                next(batches)
    assert loader_threads() == before


def test_makes_no_more_ahead_than_asked():
    made = []

    def counted():
        for number, item in enumerate(batches_then(None, count=6)):
            made.append(number)
            yield item

    with bare(counted(), prefetch=2) as batches:
        next(batches)
        # One taken, two ready, one in the thread's hands; and no more a moment later.
        wait_for(lambda: len(made) == 4)
        time.sleep(0.05)
        assert len(made) == 4


def test_measures_waiting(monkeypatch):
    """By a clock that the first batch moves on by five seconds, once the consumer has looked at it."""
    now, asked = [100.0], threading.Event()

    def clock():
        seen = now[0]
        asked.set()
        return seen

    def slow():
        asked.wait()
        now[0] += 5
        yield from batches_then(None)

    monkeypatch.setattr("nezha_ds.data.loader.time", SimpleNamespace(perf_counter=clock))
    with bare(slow()) as batches:
        next(batches)
        assert batches.wait_seconds == 5


def test_damage_and_batches_that_do_not_divide(tmp_path):
    write_folder(tmp_path, [random_columns(0, 100), random_columns(1, 100)])
    with loader(tmp_path) as batches:
        next(batches)
    shard = tmp_path / "train-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    with loader(tmp_path) as batches, pytest.raises(DataError, match=r"train-00001\.arrow is damaged"):
        for _ in range(100):
            next(batches)
    with pytest.raises(ConfigError, match="24 samples cannot be shared by 5 ranks"):
        loader(tmp_path, size=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_are_pinned_and_equal(folder):
    with loader(folder, pin=True) as pinned, loader(folder) as plain:
        for _ in range(20):
            a, b = next(pinned), next(plain)
            assert all(getattr(a, name).is_pinned() for name in PARTS)
            assert equal(join([a]), join([b]))
