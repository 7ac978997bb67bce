"""Numbers that are a function of where they are used, and look like chance in every direction."""

import numpy as np

from nezha_ds.data.randomness import Purpose, below, draws, key_of, mix, sample_keys, uniform

SAMPLES, LENGTH = 2000, 128


def grid(seed: int = 1, epoch: int = 0, purpose: Purpose = Purpose.WORD):
    """(SAMPLES, LENGTH) uniform numbers."""
    keys = sample_keys(seed, np.full(SAMPLES, epoch), np.arange(SAMPLES))
    return uniform(draws(keys[:, None], np.arange(LENGTH, dtype=np.uint64), purpose))


def test_is_splitmix64():
    # The first numbers of the reference implementation (prng.di.unimi.it/splitmix64.c) with state 1234567.
    state = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_meaning_of_a_seed_does_not_change():
    keys = sample_keys(42, np.array([0, 3]), np.array([5, 10**9]))
    assert draws(keys, np.array([7], np.uint64), Purpose.ACTION).tolist() == [10552351788871705066, 4168290861261440916]


def test_numbers_are_uniform():
    numbers = grid()
    # 256,000 numbers in 256 bins: chi-square has mean 255 and deviation 22.6.
    times = np.histogram(numbers, 256, (0, 1))[0]
    assert np.sum((times - 1000) ** 2 / 1000) < 255 + 5 * 22.6
    bits = (
        draws(key_of(3), np.arange(20_000, dtype=np.uint64), Purpose.WORD)[:, None] >> np.arange(64, dtype=np.uint64)
    ) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


def test_neighbours_in_every_direction_are_independent():
    numbers = grid()
    neighbours = [
        (numbers[:, 1:], numbers[:, :-1]),  # positions
        (numbers[1:], numbers[:-1]),  # samples
        (numbers, grid(epoch=1)),
        (numbers, grid(seed=2)),
        *((numbers, grid(purpose=purpose)) for purpose in Purpose if purpose != Purpose.WORD),
    ]
    for a, b in neighbours:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_numbers_do_not_depend_on_what_else_is_drawn():
    whole = grid()
    keys = sample_keys(1, np.zeros(1, np.int64), np.array([1234]))
    assert uniform(draws(keys, np.array([56], np.uint64), Purpose.WORD))[0] == whole[1234, 56]


def test_below_is_uniform_and_in_range():
    numbers = below(draws(key_of(4), np.arange(100_000, dtype=np.uint64), Purpose.REPLACEMENT), 100)
    times = np.bincount(numbers, minlength=100)
    assert len(times) == 100
    assert np.sum((times - 1000) ** 2 / 1000) < 99 + 5 * 14.1


def test_keys_of_seeds_differ():
    seeds = [0, 1, -1, 2**32, 2**63, 2**64 - 2]
    assert len({int(key_of(seed, epoch)[0]) for seed in seeds for epoch in range(10)}) == 60
