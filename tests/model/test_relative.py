import math

import pytest
import torch

from nezha_ds.model.relative import relative_rows, relative_table, reversed_cube


@pytest.mark.parametrize(("clip", "size"), [(64, 64), (127, 64), (5, 10), (1, 2)])
def test_the_table_is_the_formula(clip, size):
    table = relative_table(clip, size)
    assert table.shape == (2 * clip + 1, size)
    for row in (0, 1, clip, 2 * clip):
        for k in range(size // 2):
            angle = row * 10000 ** (-2 * k / size)
            assert table[row, 2 * k].item() == pytest.approx(math.sin(angle), abs=3e-5)
            assert table[row, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=3e-5)


def test_rows_count_from_the_query_to_the_key_and_stop_at_the_clip():
    rows = relative_rows(6, 2)
    assert rows[0].tolist() == [2, 3, 4, 4, 4, 4]
    assert rows[5].tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(("length", "clip"), [(1, 3), (2, 64), (40, 64), (65, 64), (66, 64), (50, 5)])
def test_the_view_is_the_cube_with_its_keys_reversed_and_as_small_as_its_rows(length, clip):
    table = relative_table(clip, 8)
    view = reversed_cube(table, length)
    assert torch.equal(view.flip(1), table[relative_rows(length, clip)])
    assert view.untyped_storage().nbytes() == (2 * length - 1) * 8 * 4
