"""Bodies on a real device, at sizes that no interpreter reaches, beside `table` in fp64."""

import pytest
import torch

from nezha_ds.model.attention import BODIES, auto_attention, table_attention
from nezha_ds.model.clipped import triton_attention
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.rotated import sdpa_attention
from tests.model.attention import KEEP, assert_no_worse, forward_and_backward, inputs, probabilities, unshifted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FACTOR = {torch.float32: 8, torch.bfloat16: 2.5, torch.float16: 1.5}
LEAST = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("lengths", [[2, 1], [64, 9], [65], [66, 64], [127, 128, 129, 130], [512, 300, 1]])
def test_triton_is_no_worse_than_the_table(lengths, size, dtype):
    arguments = inputs(lengths, heads=2, size=size, dtype=dtype, device="cuda")
    assert_no_worse(triton_attention, table_attention, arguments, FACTOR[dtype], LEAST[dtype])


@pytest.mark.parametrize("body", [triton_attention, sdpa_attention], ids=["triton", "sdpa"])
def test_one_token_sees_itself(body):
    # Where a softmax has one key its gradient is a difference that cancels, so that errors have no norm to be held to.
    arguments = inputs([1], heads=2, size=64, device="cuda")
    for one, other in zip(
        forward_and_backward(body, arguments), forward_and_backward(table_attention, arguments), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [8, 20, 127])
def test_triton_with_other_clips(clip, dtype):
    arguments = inputs([300, 77], heads=2, size=64, clip=clip, dtype=dtype, device="cuda")
    assert_no_worse(triton_attention, table_attention, arguments, FACTOR[dtype], LEAST[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("lengths", [[2, 1], [65, 30], [130, 127], [512, 300]])
def test_sdpa_is_no_worse_than_the_table(lengths, size, dtype):
    arguments = unshifted(inputs(lengths, heads=2, size=size, dtype=dtype, device="cuda"))
    assert_no_worse(sdpa_attention, table_attention, arguments, FACTOR[dtype], LEAST[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_4096_tokens(dtype):
    arguments = inputs([4096], heads=1, size=64, dtype=dtype, device="cuda")
    assert_no_worse(triton_attention, table_attention, arguments, FACTOR[dtype], LEAST[dtype])
    assert_no_worse(sdpa_attention, table_attention, unshifted(arguments), FACTOR[dtype], LEAST[dtype])


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("length", [128, 500])
def test_triton_drops_in_backward_what_it_dropped_in_forward(length, size):
    q, k, v, table, mask = inputs([length, length // 2], heads=2, size=size, device="cuda")
    arguments = ((q * 0.2).detach().requires_grad_(), k, v, table, mask)
    whole, dropped = (probabilities(triton_attention, arguments, Dropout(rate)) for rate in (0.0, 0.1))
    kept, seen = dropped > 0.5 * whole, whole > 1e-6
    assert 1 - kept[seen].double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / seen.sum().item()) ** 0.5)
    torch.manual_seed(7)
    ours = forward_and_backward(triton_attention, arguments, Dropout(0.1))
    expected = forward_and_backward(table_attention, arguments, lambda p: p * kept.flip(3) / 0.9)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_more_heads_than_a_grid_has_rows():
    arguments = inputs([3] * 5500, heads=12, size=16, clip=8, dtype=torch.float16, device="cuda")
    assert_no_worse(triton_attention, table_attention, arguments, FACTOR[torch.float16], LEAST[torch.float16])


@pytest.mark.parametrize("name", ["sdpa", "triton"])
def test_memory_grows_linearly(name):
    def peak(length):
        arguments = inputs([length], heads=2, size=64, dtype=torch.bfloat16, device="cuda")
        arguments = unshifted(arguments) if name == "sdpa" else arguments
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_and_backward(BODIES[name], arguments)
        return torch.cuda.max_memory_allocated() - before

    peak(256)  # torch's own workspaces
    assert peak(4096) <= 2.2 * peak(2048)


def test_auto_compiles_in_one_piece_without_a_sync():
    arguments = inputs([200, 150], heads=2, size=64, dtype=torch.bfloat16, device="cuda")
    compiled = torch.compile(auto_attention, fullgraph=True)
    for one, other in zip(
        forward_and_backward(compiled, arguments, KEEP), forward_and_backward(triton_attention, arguments), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
    drop = Dropout(0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(auto_attention, arguments, drop)
    finally:
        torch.cuda.set_sync_debug_mode("default")
