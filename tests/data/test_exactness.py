"""Whatever is read, and by however many: every sample once an epoch, and the same batches in every world."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.config import build
from nezha_ds.data.formats import FORMATS
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.mixture import MixedOrder, Mixture, open_mixture
from nezha_ds.data.order import Share
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder

LENGTH = 128
TEXTS = ["one", "sources", "weighted", "mixture"]
FIELDS = ("input_ids", "token_type_ids", "lengths", "mlm_positions", "mlm_labels", "sample_ids")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The settings and the training split of each kind of text in each format, of 100 to 500 samples."""
    root = tmp_path_factory.mktemp("texts")
    shards = [random_columns(seed, 150) for seed in range(5)]
    write_folder(root / "one", shards)
    write_folder(root / "sources", shards, weights={"a": 0, "b": 0})
    write_folder(root / "weighted", shards, weights={"a": 2, "b": 5, "c": 1})
    trees = {name: {"shards": str(root / name)} for name in TEXTS[:3]}
    parts = {"web": {"shards": str(root / "weighted"), "weight": 3}, "news": {"shards": str(root / "one")}}

    @cache
    def open_one(text: str, form: str) -> tuple[DataSettings, Mixture]:
        tree = {**trees, "mixture": {"mixture": parts}}[text]
        data = build(DataSettings, {**tree, "length": LENGTH, "format": form}, "a test")
        return data, open_mixture(data, "train")

    return open_one


def stream(data: DataSettings, seed: int, micro_batch: int, world: World) -> Stream:
    return Stream(data, MaskingSettings(), seed, micro_batch, world, SPECIAL, RANDOM_IDS)


@st.composite
def worlds(draw) -> tuple[int, int, int]:
    """A global batch, a number of ranks that divides it, and a micro-batch that divides a rank's part."""
    batch = draw(st.sampled_from([720, 1024]))
    size = draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    micro_batch = draw(st.sampled_from([n for n in range(1, batch // size + 1) if batch // size % n == 0]))
    return batch, size, micro_batch


@settings(max_examples=25)
@given(st.sampled_from(TEXTS), st.sampled_from([*FORMATS]), st.integers(0, 2**63), worlds(), st.integers(0, 4))
def test_all_ranks_together_make_what_one_would(opened, text, form, seed, world, restart):
    """Several epochs: the numbers of all ranks, the samples of some, and the batches of one from a restart on."""
    data, mixture = opened(text, form)
    order, steps = MixedOrder(mixture, seed), 5
    batch, size, micro_batch = world
    shares = [Share(0, micro_batch, batch, World(rank, size, 0, 1)) for rank in range(size)]
    counts = {share.accumulation for share in shares}
    assert counts == {batch // size // micro_batch}
    numbers = np.stack([share.numbers(0, steps * share.accumulation).reshape(steps, -1) for share in shares], axis=1)
    assert np.array_equal(numbers.reshape(-1), np.arange(steps * batch))

    whole, epochs = order.place(np.arange(steps * batch))
    for rank in {0, size // 3, size - 1}:
        own, own_epochs = order.place(numbers[:, rank].reshape(-1))
        assert np.array_equal(own, whole[numbers[:, rank]].reshape(-1))
        assert np.array_equal(own_epochs, epochs[numbers[:, rank]].reshape(-1))

    rank = seed % size
    expected, _ = stream(data, seed, 1, World()).pipeline(mixture).make(whole, epochs)
    where = stream(data, seed, micro_batch, World(rank, size, 0, 1))
    with build_loader(where, global_batch=batch, first=restart * batch) as batches:
        made = [next(batches) for _ in range((steps - restart) * batch // size // micro_batch)]
        assert batches.position == steps * batch
    rows = torch.from_numpy(numbers[restart:, rank].reshape(-1))
    for field in FIELDS:
        assert torch.equal(torch.cat([getattr(one, field) for one in made]), getattr(expected, field)[rows]), field


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_sample_once_an_epoch_of_its_part(opened, text, form):
    _, mixture = opened(text, form)
    samples, epochs = MixedOrder(mixture, 11).place(np.arange(12 * len(mixture)))
    shards = np.searchsorted(np.cumsum(mixture.counts), samples, side="right")
    assert len(mixture.parts) == {"one": 1, "sources": 1, "weighted": 3, "mixture": 4}[text]
    for part in mixture.parts:
        here = np.isin(shards, part.shards)
        own, epoch = samples[here], epochs[here]
        everything = np.sort(mixture.among(part.shards, np.arange(mixture.size(part.shards))))
        assert np.array_equal(epoch, np.arange(len(own)) // len(everything))
        assert epoch[-1] >= 2
        orders = [own[epoch == at] for at in range(epoch[-1])]
        assert all(np.array_equal(np.sort(one), everything) for one in orders)
        assert not any(np.array_equal(orders[0], other) for other in orders[1:])
    assert np.array_equal(np.unique(samples), np.arange(len(mixture)))


@pytest.mark.parametrize("text", TEXTS)
def test_two_seeds_differ_in_order_and_masks(opened, text):
    data, mixture = opened(text, "segment-pair")
    first, second = (MixedOrder(mixture, seed).place(np.arange(len(mixture)))[0] for seed in (1, 2))
    assert np.mean(first == second) < 0.1
    one, two = (
        stream(data, seed, 8, World()).pipeline(mixture).make(first, np.zeros_like(first))[0] for seed in (1, 2)
    )
    assert (one.mlm_positions != two.mlm_positions).any(dim=1).float().mean() > 0.95
    assert torch.equal(one.lengths, two.lengths)
    assert one.next_sentence_labels is not None and two.next_sentence_labels is not None
    assert torch.equal(one.next_sentence_labels, two.next_sentence_labels)
