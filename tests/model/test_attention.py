import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.model import banded
from nezha_ds.model.attention import BODIES, reference_attention, table_attention
from nezha_ds.model.dropout import dropout
from tests.model.attention import KEEP, forward_and_backward, in_float64, inputs


@pytest.mark.parametrize("body", ["auto", "banded", "table"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    half=st.integers(1, 5),
    clip=st.integers(1, 45),
)
def test_each_body_is_the_reference_forward_and_backward(body, lengths, heads, half, clip):
    arguments = inputs(lengths, heads, 2 * half, clip)
    for ours, expected in zip(
        forward_and_backward(BODIES[body], arguments),
        forward_and_backward(reference_attention, arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", ["banded", "table"])
@pytest.mark.parametrize("lengths", [[150, 90, 1], [64, 30]])
def test_at_full_size_too(lengths, body):
    arguments = inputs(lengths, heads=2, size=64)
    for ours, expected in zip(
        forward_and_backward(BODIES[body], arguments),
        forward_and_backward(reference_attention, arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("body", ["banded", "table"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[150, 90], [40, 7], [300]])
def test_it_errs_no_more_than_the_reference(lengths, dtype, body):
    arguments = inputs(lengths, size=64, dtype=dtype)
    truth = forward_and_backward(reference_attention, in_float64(arguments))
    ours = forward_and_backward(BODIES[body], arguments)
    theirs = forward_and_backward(reference_attention, arguments)
    for exact, fast, slow in zip(truth, ours, theirs, strict=True):
        assert fast.dtype == dtype
        assert (fast - exact).norm() <= 1.2 * (slow - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_same_dropout_too_which_also_thins_the_position_vectors(dtype):
    arguments = inputs([50, 20], clip=8, dtype=dtype)
    kept = (torch.rand(2, 3, 50, 50, generator=torch.Generator().manual_seed(1)) > 0.3).to(dtype)
    expected = forward_and_backward(reference_attention, arguments, lambda p: p * kept)
    ours = forward_and_backward(table_attention, arguments, lambda p: p * kept.flip(3))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("body", ["auto", "banded", "table", "reference"])
def test_the_value_term_uses_probabilities_after_dropout(body):
    assert BODIES[body](*inputs([9]), torch.zeros_like).count_nonzero() == 0


@pytest.mark.parametrize("body", ["auto", "sdpa", "banded", "table", "reference"])
def test_padding_keys_have_no_say(body):
    q, k, v, table, mask = inputs([30, 12])
    other_k, other_v = k.clone(), v.clone()
    other_k[1, :, 12:], other_v[1, :, 12:] = 5.0, -7.0
    assert torch.equal(BODIES[body](q, k, v, table, mask, KEEP), BODIES[body](q, other_k, other_v, table, mask, KEEP))


@pytest.mark.parametrize("length", [5, 8, 9, 40])
def test_banded_gradients_are_those_of_its_forward_with_dropout_too(length):
    q, k, v, table, mask = in_float64(inputs([length, length // 2 + 1], heads=2, size=4, clip=8))

    def seeded(q, k, v):
        torch.manual_seed(3)
        return BODIES["banded"](q, k, v, table, mask, lambda ones: dropout(ones, 0.3))

    assert torch.autograd.gradcheck(seeded, (q, k, v))


def test_banded_drops_what_the_reference_drops():
    arguments = inputs([50, 20], clip=8)
    kept = (torch.rand(6, 50, 50, generator=torch.Generator().manual_seed(1)) > 0.3) / 0.7
    blocks = iter(kept.split(max(1, banded.BLOCK // 10000)))
    ours = forward_and_backward(BODIES["banded"], arguments, lambda ones: ones * next(blocks))
    expected = forward_and_backward(reference_attention, arguments, lambda p: p * kept.unflatten(0, (2, 3)))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_banded_keeps_no_square_for_backward():
    """Bytes that autograd holds between forward and backward, without dropout: linear in the length."""

    def held(length):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x, lambda x: x
        ):
            BODIES["banded"](*inputs([length], size=16), KEEP)
        return sum(sizes.values())

    assert held(800) <= 2.1 * held(400)
