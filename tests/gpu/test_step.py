"""What only a device shows of a pretraining step: it waits for nothing, its precisions agree, its memory is linear.

Tests that can run on a CPU too run there in `make test`, so that they are known to be sound before a GPU is at hand.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from nezha_ds.model.attention import BODIES
from nezha_ds.model.dropout import Dropout, dropout
from nezha_ds.model.nezha import padding_mask
from tests.gpu.cases import Group
from tests.gpu.sides import OURS, Side

cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ON_BOTH = ["cpu", pytest.param("cuda", marks=cuda)]


def side(name, dtype, length=64, batch=2, device="cuda"):
    made = Side(name, Group("step", "tiny", length, dtype, (name,)), torch.device(device))
    made.set_batch(batch)
    return made


def on_cuda(names):
    """Cases (name, device)."""
    return [pytest.param(name, "cuda", marks=cuda) for name in names]


@contextmanager
def no_waiting():
    """Inside, whatever makes the host wait for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "device"), on_cuda(OURS))
def test_forward_and_losses_wait_for_nothing(name, device, dtype):
    made = side(name, dtype)
    made.forward_backward()  # what is compiled or filled at the first call may wait
    with no_waiting():
        loss = made.loss()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(("name", "device"), on_cuda(OURS))
def test_nor_does_a_whole_step_with_its_update(name, device):
    made = side(name, "bf16")
    for waiting in (nullcontext, nullcontext, no_waiting):
        with waiting():
            made.forward_backward()
            made.update()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "device"), [("table", "cpu"), *on_cuda(OURS)])
def test_half_precision_is_near_fp32_in_loss_and_gradients(name, device, dtype):
    """Dropout off. 5% of the gradient's norm: bf16 has 8 bits, of which four layers leave so much."""
    exact = side("table" if name == "triton" else name, "fp32", device=device)
    half = side(name, dtype, device=device)
    half.model.load_state_dict(exact.model.state_dict())
    exact.model.load_state_dict(half.model.state_dict())
    losses, gradients = [], []
    for made in (exact, half):
        made.model.eval()
        losses.append(made.forward_backward().item())
        flat = torch.cat([p.grad.flatten().double() for p in made.model.parameters()])
        gradients.append(flat / made.optimizer.scale)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize(("name", "device"), on_cuda(["triton", "unclipped", "bert"]))
def test_what_is_kept_for_backward_is_linear_in_the_length(name, device):
    """Bytes between forward and backward at equal tokens, 4 × 512 and 1 × 2,048; squares would make it four times."""
    held = []
    for length, batch in ((512, 4), (2048, 1)):
        made = side(name, "bf16", length, batch)
        made.forward_backward()
        made.optimizer.forget_gradients()
        before = torch.cuda.memory_allocated()
        loss = made.loss()
        held.append(torch.cuda.memory_allocated() - before)
        del loss, made
    assert held[1] < 1.2 * held[0]


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_drops_its_share_and_keeps_the_mean(device, dtype):
    torch.manual_seed(0)
    x = torch.ones(1 << 20, device=device, dtype=dtype)
    dropped, again = dropout(x, 0.1), dropout(x, 0.1)
    kept = dropped != 0
    # A binomial of a million: five standard deviations are 0.0015.
    assert kept.double().mean().item() == pytest.approx(0.9, abs=0.0015)
    assert dropped[kept].double().mean().item() == pytest.approx(1 / 0.9, rel=0.005)
    assert not torch.equal(kept, again != 0)
    neighbours = (kept[1:] & kept[:-1]).double().mean().item()
    assert neighbours == pytest.approx(0.81, abs=0.002)


@pytest.mark.parametrize(
    ("body", "device"),
    [("table", "cpu"), *on_cuda(["table", "triton", "sdpa"])],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_body_drops_probabilities_and_backward_knows_which(body, device, dtype):
    """With q = 0 all probabilities are 1/L, and with v = 1 the output is the matrix of those that were kept."""
    torch.manual_seed(0)
    batch, heads, length = 4, 8, 64
    q = torch.zeros(batch, heads, length, length, device=device, dtype=dtype)
    eye = torch.eye(length, device=device, dtype=dtype).expand_as(q).contiguous().requires_grad_()
    table = None if body == "sdpa" else torch.zeros(17, length, device=device, dtype=dtype)
    mask = padding_mask(torch.full((batch,), length, device=device), length, dtype)
    drop = Dropout(0.25).train()
    output = BODIES[body](q, torch.zeros_like(q), eye, table, mask, drop)
    (gradient,) = torch.autograd.grad(output, eye, torch.eye(length, device=device, dtype=dtype).expand_as(output))
    kept = output != 0
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.006)  # 131,072 draws: five deviations
    assert (output[kept] * length).double().mean().item() == pytest.approx(1 / 0.75, rel=0.01)
    assert torch.equal(gradient.transpose(2, 3) != 0, kept)
    torch.testing.assert_close(gradient.transpose(2, 3), output, rtol=0.01, atol=1e-3)
    # Heads, samples and rows have masks of their own: two of them agree in 0.75² + 0.25² of their places.
    for one, other in ((kept[0], kept[1]), (kept[:, 0], kept[:, 1]), (kept[:, :, 0], kept[:, :, 1])):
        assert (one == other).double().mean().item() == pytest.approx(0.625, abs=0.06)
    assert not torch.equal(BODIES[body](q, torch.zeros_like(q), eye, table, mask, drop) != 0, kept)
