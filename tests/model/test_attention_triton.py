"""The kernels beside the reference: by Triton's interpreter, or on the GPU where there is one."""

import pytest
import torch

from nezha_ds.model import clipped
from nezha_ds.model.attention import reference_attention
from nezha_ds.model.clipped import triton_attention
from nezha_ds.model.dropout import Dropout
from tests.model.attention import KEEP, assert_no_worse, forward_and_backward, inputs, probabilities

# The interpreter multiplies scalars of 32 bits by numpy, which tells of the overflow that Philox is made of.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The kernels turn q and dO in the model's dtype, once more than the reference rounds.
ERRS = {torch.float32: 8, torch.bfloat16: 2.5, torch.float16: 1.5}
LEAST = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}


@pytest.mark.parametrize(
    ("lengths", "size", "clip", "dtype"),
    [
        ([2, 1], 32, 64, torch.float32),
        ([63, 7], 32, 64, torch.float32),
        ([65], 64, 64, torch.float32),
        ([129, 1], 32, 64, torch.float16),
        ([200], 64, 64, torch.float16),
        ([300], 32, 64, torch.bfloat16),
        ([66], 128, 64, torch.bfloat16),
        ([70], 16, 8, torch.float32),
        ([150], 32, 21, torch.float16),
    ],
)
def test_it_is_the_reference_forward_and_backward(lengths, size, clip, dtype):
    arguments = inputs(lengths, heads=1, size=size, clip=clip, dtype=dtype, device=DEVICE)
    assert_no_worse(triton_attention, reference_attention, arguments, ERRS[dtype], LEAST[dtype])


@pytest.mark.parametrize(("lengths", "heads"), [([64, 3], 3), ([1], 1)])
def test_one_token_and_several_heads(lengths, heads):
    arguments = inputs(lengths, heads, size=16, device=DEVICE)
    for one, other in zip(
        forward_and_backward(triton_attention, arguments),
        forward_and_backward(reference_attention, arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=3e-5)


def test_views_as_they_come_from_one_product_of_all_heads():
    rows = torch.randn(2, 40, 3, 2, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    _, _, _, table, mask = inputs([40, 30], size=16, clip=32, device=DEVICE)

    def run(body):
        # (B, L, 3, N, H) -> three of (B, N, L, H)
        output = body(*rows.permute(2, 0, 3, 1, 4).unbind(0), table, mask, KEEP)
        joined = output.transpose(1, 2).flatten(2)
        return output, joined, torch.autograd.grad((joined * joined.detach().cos()).sum(), rows)[0]

    ours, expected = run(triton_attention), run(reference_attention)
    assert ours[0].transpose(1, 2).is_contiguous()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=3e-5)


def test_backward_drops_what_forward_dropped_and_at_the_rate():
    rate = 0.3
    q, k, v, table, mask = inputs([70], heads=1, size=64, clip=16, device=DEVICE)
    arguments = ((q * 0.2).detach().requires_grad_(), k, v, table, mask)  # no probability too small to see
    whole, dropped = (probabilities(triton_attention, arguments, Dropout(x)) for x in (0.0, rate))
    kept = dropped > 0.5 * whole
    seen = whole > 1e-6
    torch.testing.assert_close(dropped, whole * kept / (1 - rate), atol=2e-6, rtol=2e-5)
    share = 1 - kept[seen].double().mean().item()
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / seen.sum().item()) ** 0.5)

    def same(p):
        return p * kept / (1 - rate)

    torch.manual_seed(7)
    ours = forward_and_backward(triton_attention, arguments, Dropout(rate))
    for one, other in zip(ours, forward_and_backward(reference_attention, arguments, same), strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=5e-5)


def test_what_is_dropped_has_no_pattern():
    # Uniform probabilities: no score differs. 2 x 128 x 128 decisions.
    q, k, _, table, mask = inputs([128], heads=2, size=128, device=DEVICE)
    arguments = (torch.zeros_like(q), k, torch.zeros_like(q), table, mask)
    first = (probabilities(triton_attention, arguments, Dropout(0.3))[0] < 1e-4).double() - 0.3
    deviation = (0.3 * 0.7) / first[0].numel() ** 0.5
    neighbours = {
        "heads": first[0] * first[1],
        "queries": first[0, 1:] * first[0, :-1],
        "keys": first[0, :, 1:] * first[0, :, :-1],
        "query and key": first[0] * first[0].T,
        "rectangles": first[0, 1:, 1:] * first[0, :-1, 1:] * first[0, 1:, :-1] * first[0, :-1, :-1] / 0.21,
    }
    for name, products in neighbours.items():
        assert abs(products.mean().item()) < 4.5 * deviation, name


def test_the_seed_decides_and_evaluation_draws_none():
    arguments = inputs([20], heads=1, size=16, device=DEVICE)
    dropout = Dropout(0.4)
    torch.manual_seed(1)
    first, second = (triton_attention(*arguments, dropout) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, triton_attention(*arguments, dropout))
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    whole = triton_attention(*arguments, dropout.eval())
    assert torch.equal(whole, triton_attention(*arguments, KEEP))
    assert torch.equal(state, torch.get_rng_state())


def test_padding_keys_have_no_say():
    q, k, v, table, mask = inputs([30, 12], heads=1, size=16, device=DEVICE)
    other_k, other_v = k.clone(), v.clone()
    other_k[1, :, 12:], other_v[1, :, 12:] = 5.0, -7.0
    assert torch.equal(
        triton_attention(q, k, v, table, mask, KEEP), triton_attention(q, other_k, other_v, table, mask, KEEP)
    )


def test_far_keys_of_long_sequences():
    # Forward alone: ten blocks of keys, most of them beyond the band.
    q, k, v, table, mask = inputs([600], heads=1, size=16, clip=32, dtype=torch.float16, device=DEVICE)
    ours = triton_attention(q, k, v, table, mask, KEEP)
    exact = reference_attention(*(x.double() for x in (q, k, v, table, mask)), KEEP)
    assert (ours - exact).norm() < 1e-3 * exact.norm()


def test_torch_knows_the_operator():
    q, k, v, table, mask = inputs([9], heads=1, size=16, clip=8, device=DEVICE)
    seed = torch.tensor([3], device=DEVICE)
    torch.library.opcheck(clipped._attend, (q, k, v, mask[:, 0, 0], table, seed, 0.3))


def test_compiled_in_one_piece():
    arguments = inputs([20], heads=2, size=16, device=DEVICE)
    compiled = torch.compile(triton_attention, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        forward_and_backward(compiled, arguments), forward_and_backward(triton_attention, arguments), strict=True
    ):
        assert torch.equal(one, other)
