"""An epoch is every sample once, in an order that nothing but seed, epoch and number decides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.data.order import Order, Share, permute, rank_samples
from nezha_ds.errors import ConfigError
from nezha_ds.world import World

counts = st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(lambda parts: sum(parts) > 0)


def world(rank: int, size: int) -> World:
    return World(rank, size, 0, 1)


@given(counts, st.integers(-(2**63), 2**64 - 1), st.integers(1, 9), st.integers(0, 10**6))
def test_every_sample_once_an_epoch(counts, seed, window, epoch):
    order = Order(counts, seed, window)
    numbers = np.arange(order.samples) + epoch * order.samples
    assert np.all(order.epochs(numbers) == epoch)
    assert sorted(order.sample(numbers).tolist()) == list(range(order.samples))


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 2**64 - 1)), min_size=1, max_size=3))
def test_permute_is_a_bijection_for_every_size_and_key(parts):
    sizes = np.concatenate([np.full(size, size) for size, _ in parts])
    keys = np.concatenate([np.full(size, key, np.uint64) for size, key in parts])
    mixed = permute(np.concatenate([np.arange(size) for size, _ in parts]), sizes, keys)
    ends = np.cumsum([size for size, _ in parts])[:-1]
    for part in np.split(mixed, ends):
        assert sorted(part.tolist()) == list(range(len(part)))


def test_places_and_neighbours_are_uniform_in_a_small_window():
    size, times = 50, 20_000
    keys = np.random.default_rng(0).integers(0, 2**64, times, dtype=np.uint64)
    index, sizes = np.tile(np.arange(size), times), np.full(size * times, size)
    mixed = permute(index, sizes, np.repeat(keys, size)).reshape(times, size)
    distances = (mixed[:, 1:] - mixed[:, :-1]) % size - 1
    for values, bins in [(mixed[:, 0], size), (mixed[:, 25], size), (mixed[:, -1], size), (distances, size - 1)]:
        found, expected = np.bincount(values.ravel(), minlength=bins), values.size / bins
        chi_square = np.sum((found - expected) ** 2 / expected)
        assert chi_square < bins - 1 + 5 * np.sqrt(2 * bins)


def test_orders_do_not_resemble_each_other():
    def correlation(a, b):
        return abs(np.corrcoef(a, b)[0, 1])

    counts = [5000] * 6
    numbers = np.arange(30_000)
    first = Order(counts, seed=1, window=8).sample(numbers)
    again = Order(counts, seed=1, window=8).sample(numbers + 30_000)
    other = Order(counts, seed=2, window=8).sample(numbers)
    # The deviation of a correlation by chance is 1 / sqrt(30,000) = 0.006.
    for a, b in [(first, numbers), (again, numbers), (first, again), (first, other), (first[1:], first[:-1])]:
        assert correlation(a, b) < 5 * 0.006


def test_only_a_window_of_shards_is_read_at_a_time():
    counts = np.random.default_rng(0).integers(50, 150, 64)
    order = Order(counts, seed=3, window=4)
    owner = np.repeat(np.arange(64), counts)[order.sample(np.arange(order.samples))]
    last = {shard: at for at, shard in enumerate(owner.tolist())}
    opened, finished = set(), set()
    for at, shard in enumerate(owner.tolist()):
        opened.add(shard)
        assert len(opened - finished) <= 4
        if last[shard] == at:
            finished.add(shard)


@given(st.sampled_from([1, 2, 3, 7, 64, 1000, 1024]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 500))
def test_ranks_share_each_step_whatever_their_number(size, accumulation, micro_batch, first):
    batch = size * accumulation * micro_batch
    shares = [Share(first, micro_batch, batch, world(rank, size)) for rank in range(size)]
    assert shares[0].accumulation == accumulation
    for step in range(2):
        numbers = np.concatenate([share.numbers(step * accumulation, accumulation) for share in shares])
        assert numbers.tolist() == list(range(first + step * batch, first + (step + 1) * batch))


@given(counts, st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 50))
def test_a_step_holds_the_same_samples_at_any_world_size(counts, few, many, step):
    order = Order(counts, seed=5)

    def samples(size: int) -> list[int]:
        own = [order.sample(rank_samples(step * 12, 12, world(rank, size))) for rank in range(size)]
        return np.concatenate(own).tolist()

    assert samples(few) == samples(many) == order.sample(np.arange(12) + step * 12).tolist()


@given(st.integers(0, 40), st.integers(1, 9))
def test_blocks_of_any_size_give_the_same_numbers(start, block):
    share = Share(7, 2, 24, world(1, 3))
    whole = share.numbers(0, 60).reshape(60, 2)
    assert share.numbers(start, block).tolist() == whole[start : start + block].reshape(-1).tolist()


def test_position_is_where_the_next_whole_step_begins():
    share = Share(first=100, micro_batch=2, global_batch=24, world=world(2, 4))
    assert [share.position(served) for served in range(7)] == [100, 100, 100, 124, 124, 124, 148]


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"batch of 10 samples cannot be shared by 4 ranks; take a multiple of 4"):
        rank_samples(0, 10, world(0, 4))
    with pytest.raises(ConfigError, match=r"12 / 2 = 6 samples.*train_micro_batch_size_per_gpu = 4; take a divisor"):
        Share(0, 4, 12, world(0, 2))
