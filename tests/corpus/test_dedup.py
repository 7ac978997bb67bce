"""Later copies against a set, and keys that depend on nothing but the text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.corpus.dedup import KEYS, document_key, later_copies


@given(st.lists(st.lists(st.integers(0, 5))))
def test_later_copies_equal_a_set(tasks: list[list[int]]) -> None:
    seen: set[int] = set()
    expected = []
    for task in tasks:
        copies = []
        for position, key in enumerate(task):
            if key in seen:
                copies.append(position)
            seen.add(key)
        expected.append(copies)
    found = later_copies([np.array(task, dtype=np.uint64) for task in tasks])
    assert [part.tolist() for part in found] == expected


def test_keys_are_spread_evenly() -> None:
    keys = [document_key(f"文 {number}") for number in range(20_000)]
    assert document_key("文 0") == keys[0]
    counts = np.bincount([key * 10 // KEYS for key in keys], minlength=10)
    assert np.square(counts - 2000).sum() / 2000 < 27.9  # chi-square of 9 degrees, p = 0.001
