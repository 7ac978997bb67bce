"""Rows equal what a loop over tokens would write."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.data.collate import gather
from nezha_ds.data.dataset import Slices
from nezha_ds.data.formats import full_sentences
from tests.data.folders import SPECIAL, documents, slow_row, to_columns


@given(st.lists(documents, min_size=1, max_size=3), st.integers(16, 150), st.randoms(use_true_random=False))
def test_equals_the_loop(shards, length, random):
    columns = [to_columns(shard) for shard in shards]
    samples = [
        (shard, start, end)
        for shard, part in enumerate(columns)
        for start, end in [*full_sentences(part, length).tolist(), (0, 0)]
        # Also from the middle of a word or a sentence on.
        for start in {start, (start + end) // 2}
    ]
    random.shuffle(samples)
    rows = gather(columns.__getitem__, Slices(*np.array(samples).T), length, SPECIAL)
    for number, (shard, start, end) in enumerate(samples):
        ids, text, words = slow_row(columns[shard], start, end, length)
        assert rows.ids[number].tolist() == ids
        assert rows.text[number].tolist() == text
        assert rows.words[number].tolist() == words
        assert rows.lengths[number] == length - ids.count(SPECIAL.pad)
