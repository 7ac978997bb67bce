"""Attention by blocks is the reference, whatever the blocks, the band, the padding, the dropout and the table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.errors import ConfigError
from nezha_ds.model import banded
from nezha_ds.model.attention import reference_attention
from nezha_ds.model.banded import banded_attention
from nezha_ds.model.diagonals import Band, Plain, Whole, band_sizes, positions
from nezha_ds.model.dropout import Dropout, dropout
from tests.model.attention import KEEP, forward_and_backward, in_float64, inputs

# Clips and lengths: a band; one with steps longer than the clip; one that fills a row; none.
SHAPES = [(8, 70), (2, 100), (6, 31), (8, 30)]


def with_table_gradient(body, arguments, dropout=KEEP):
    """The output and the gradients of q, k, v and the table."""
    q, k, v, table, mask = arguments
    table = table.clone().requires_grad_()
    output = body(q, k, v, table, mask, dropout)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output, *torch.autograd.grad((output * weights).sum(), (q, k, v, table))


def close(ours, expected, tolerance=1e-5):
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_the_kind_goes_by_length_and_clip():
    kinds = [positions(torch.zeros(2 * clip + 1, 4), torch.zeros(4), length, 1, False) for clip, length in SHAPES]
    assert [type(kind) for kind in kinds] == [Band, Band, Band, Whole]
    assert type(positions(None, torch.zeros(4), 70, 1, False)) is Plain
    assert band_sizes(6, 31)[2] == 32  # one more than a row has keys, and no cell twice


@pytest.mark.parametrize("block", [1, 4 * 3 * 4000, 1 << 21])
@pytest.mark.parametrize(("clip", "length"), SHAPES)
def test_blocks_of_any_size_are_the_reference_with_the_gradient_of_the_table(monkeypatch, clip, length, block):
    monkeypatch.setattr(banded, "BLOCK", block)
    arguments = inputs([length, length // 2, 1], heads=2, clip=clip)
    close(with_table_gradient(banded_attention, arguments), with_table_gradient(reference_attention, arguments))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    heads=st.integers(1, 5),
    clip=st.integers(1, 12),
    most=st.integers(1, 7),
)
def test_whatever_the_shape(lengths, heads, clip, most):
    # In fp64: a row of the table collects thousands of terms.
    arguments = in_float64(inputs(lengths, heads, 6, clip))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banded, "BLOCK", most * 8 * max(lengths) ** 2)
        ours = with_table_gradient(banded_attention, arguments)
    close(ours, with_table_gradient(reference_attention, arguments), 1e-9)


def test_two_threads_compute_what_one_does():
    # The view of the band shows cells of the next head and row, which another thread may be at.
    arguments = inputs([300, 200], heads=4, size=16, clip=32)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(forward_and_backward(banded_attention, arguments))
    finally:
        torch.set_num_threads(threads)
    close(*results)


@pytest.mark.parametrize("lengths", [[30], [40, 13]])
def test_without_a_table_it_is_plain_attention(lengths):
    q, k, v, _, mask = inputs(lengths)

    def plain(q, k, v, table, mask, dropout):
        return dropout((q @ k.transpose(2, 3) + mask).softmax(-1)) @ v

    arguments = (q, k, v, None, mask)
    close(forward_and_backward(banded_attention, arguments), forward_and_backward(plain, arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_our_dropout_forward_and_backward_drop_the_same(dtype):
    """The mask that was drawn, found by values that tell each place apart, then given to the reference."""
    length = 40
    q, k, v, table, mask = inputs([length, length], heads=2, size=4, clip=8, dtype=dtype)
    asked = Dropout(0.3).train()
    eyes = torch.eye(length, dtype=dtype).expand(2, 2, length, length).clone().requires_grad_()
    no_table = torch.zeros(17, length, dtype=dtype)
    wide = [torch.zeros(2, 2, length, length, dtype=dtype, requires_grad=True) for _ in range(2)]
    torch.manual_seed(5)
    kept = banded_attention(*wide, eyes, no_table, torch.zeros_like(mask), asked) != 0
    assert 0.25 < 1 - kept.double().mean() < 0.35
    torch.manual_seed(5)
    ours = forward_and_backward(banded_attention, (q, k, v, table, mask), asked)
    factors = kept.to(dtype) * (65536 / (65536 - round(0.3 * 65536)))
    expected = forward_and_backward(reference_attention, (q, k, v, table, mask), lambda p: p * factors)
    close(ours, expected, 1e-5 if dtype == torch.float32 else 6e-2)


def test_it_says_that_it_needs_a_cpu():
    q, k, v, table, mask = (x.detach().to("meta") for x in inputs([9]))
    with pytest.raises(ConfigError, match=r"'banded' computes on a CPU, and this model is on meta; take 'auto'"):
        banded_attention(q, k, v, table, mask, KEEP)


@pytest.mark.parametrize("length", [5, 8, 9, 40])
def test_gradients_are_those_of_its_forward_with_dropout_too(length):
    q, k, v, table, mask = in_float64(inputs([length, length // 2 + 1], heads=2, size=4, clip=8))

    def seeded(q, k, v, table):
        torch.manual_seed(3)
        return banded_attention(q, k, v, table, mask, lambda ones: dropout(ones, 0.3))

    assert torch.autograd.gradcheck(seeded, (q, k, v, table.requires_grad_()), fast_mode=True)


def test_drops_what_the_reference_drops():
    arguments = inputs([50, 20], clip=8)
    kept = (torch.rand(6, 50, 50, generator=torch.Generator().manual_seed(1)) > 0.3) / 0.7
    blocks = iter(kept.split(max(1, banded.BLOCK // 10000)))
    ours = forward_and_backward(banded_attention, arguments, lambda ones: ones * next(blocks))
    expected = forward_and_backward(reference_attention, arguments, lambda p: p * kept.unflatten(0, (2, 3)))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_keeps_no_square_for_backward():
    """Bytes that autograd holds between forward and backward, without dropout: linear in the length."""

    def held(length):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x, lambda x: x
        ):
            banded_attention(*inputs([length], size=16), KEEP)
        return sum(sizes.values())

    assert held(800) <= 2.1 * held(400)
