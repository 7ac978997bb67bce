"""What holds for every body, and which of them a model gets."""

import pytest
import torch

from nezha_ds.errors import ConfigError
from nezha_ds.model import attention, clipped
from nezha_ds.model.attention import (
    BODIES,
    attention_body,
    auto_attention,
    learned_attention,
    plain_attention,
    reference_attention,
    table_attention,
)
from nezha_ds.model.clipped import triton_attention
from nezha_ds.model.config import preset
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.rotated import sdpa_attention
from tests.model.attention import KEEP, assert_no_worse, forward_and_backward, inputs, probabilities, unshifted

LINEAR = {"sdpa", "triton"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("lengths", "size"), [([128, 40], 64), ([66, 1], 32), ([2], 128)])
def test_sdpa_is_the_reference_for_the_papers_own_rows(lengths, size, dtype):
    arguments = unshifted(inputs(lengths, heads=2, size=size, dtype=dtype))
    assert_no_worse(sdpa_attention, reference_attention, arguments, factor=4 if dtype == torch.float32 else 1.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[65, 1], [64, 30], [3]])
def test_sdpa_is_the_reference_for_released_rows_while_none_is_clipped(lengths, dtype):
    # The released table is exact to 4e-6, and turning by two of its rows errs twice.
    arguments = inputs(lengths, heads=2, size=64, dtype=dtype)
    assert_no_worse(sdpa_attention, reference_attention, arguments, factor=1.2, floor=3e-5)


@pytest.mark.parametrize("name", ["banded", "sdpa"])
def test_4096_tokens(name):
    arguments = inputs([4096], heads=1, size=32)
    if name == "sdpa":
        arguments = unshifted(arguments)
    for one, other in zip(
        forward_and_backward(BODIES[name], arguments), forward_and_backward(table_attention, arguments), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("name", ["auto", "sdpa", "table", "reference"])
def test_absolute_positions_have_no_table(name, rate):
    q, k, v, _, mask = inputs([30, 12])
    arguments = (q, k, v, None, mask)
    body, dropout = BODIES[name], Dropout(rate)
    kept = (probabilities(body, arguments, dropout) > 1e-9) / (1 - rate)
    expected = forward_and_backward(
        lambda q, k, v, _, mask, drop: plain_attention(q, k, v, mask, drop), arguments, lambda p: p * kept
    )
    torch.manual_seed(7)
    for one, other in zip(forward_and_backward(body, arguments, dropout), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_sdpa_drops_in_backward_what_it_dropped_in_forward():
    arguments = unshifted(inputs([50, 33], heads=2, size=16))
    whole, dropped = (probabilities(sdpa_attention, arguments, Dropout(rate)) for rate in (0.0, 0.3))
    kept = dropped > 0.5 * whole
    assert 1 - kept[whole > 1e-6].double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.manual_seed(7)
    ours = forward_and_backward(sdpa_attention, arguments, Dropout(0.3))
    for one, other in zip(
        ours, forward_and_backward(reference_attention, arguments, lambda p: p * kept / 0.7), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", ["auto", "banded", "table", "sdpa", "triton"])
def test_no_body_builds_the_cube_and_the_linear_ones_no_square(name):
    """By the largest block of memory that any operation, forward or backward, asks for."""
    length, size = 140, 32
    arguments = inputs([length], heads=1, size=size, clip=32)
    if name == "sdpa":
        arguments = unshifted(arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        forward_and_backward(BODIES[name], arguments)
    largest = max(event.self_cpu_memory_usage for event in profile.events()) / 4
    assert largest >= length * size, "something was seen"
    assert largest < length * length * (0.99 if name in LINEAR else 4)


@pytest.mark.parametrize("compiled", [auto_attention, sdpa_attention], ids=["auto", "sdpa"])
def test_compiled_in_one_piece(compiled):
    arguments = unshifted(inputs([33, 20]))
    torch.compiler.reset()
    for one, other in zip(
        forward_and_backward(torch.compile(compiled, fullgraph=True, backend="aot_eager"), arguments),
        forward_and_backward(compiled, arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"attention": "sdpa"},
            r"'sdpa' needs a position for every distance, and max_position_embeddings = 512 is more",
        ),
        (
            {"attention": "triton", "positions": "functional-relative-unclipped"},
            r"computes positions = 'functional-rel",
        ),
        ({"attention": "triton", "positions": "learned-absolute"}, r"not 'learned-absolute'; take attention = 'auto'"),
        ({"attention": "triton", "max_relative_position": 4}, r"needs max_relative_position of at least 8, not 4"),
        ({"attention": "triton", "hidden_size": 96}, r"heads of 16, 32, 64, 128 features, not of 24"),
    ],
)
def test_a_body_that_cannot_compute_a_model_is_refused_as_the_model_is_built(values, reason):
    with pytest.raises(ConfigError, match=reason), torch.device("meta"):
        NezhaForPreTraining(preset("tiny", vocab_size=71, **values))


def test_triton_is_refused_where_it_is_missing_or_has_no_gpu(monkeypatch):
    config = preset("tiny", attention="triton")
    monkeypatch.setattr(clipped, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'triton' runs on a GPU, and torch sees none; take attention = 'auto'"):
        attention_body(config)
    with pytest.raises(ConfigError, match="runs on a GPU, and this model is on the cpu; take attention = 'auto'"):
        triton_attention(*inputs([9], size=16), KEEP)
    monkeypatch.setattr(attention, "HAS_TRITON", False)
    with pytest.raises(ConfigError, match="needs Triton, which is not installed"):
        attention_body(config)


def test_what_only_the_call_can_tell_is_refused_there():
    with pytest.raises(ConfigError, match="computes in fp32, bf16 and fp16, not in float64; take attention = 'auto'"):
        triton_attention(*inputs([9], size=16, dtype=torch.float64), KEEP)
    with pytest.raises(ConfigError, match=r"66 tokens are more than max_relative_position \+ 1 = 65"):
        sdpa_attention(*inputs([66]), KEEP)


@pytest.mark.parametrize(
    ("positions", "body"),
    [
        ("learned-relative", learned_attention),
        ("learned-absolute", auto_attention),
        ("functional-relative", auto_attention),
    ],
)
def test_auto_for_learned_rows_is_the_body_that_trains_them(positions, body):
    assert attention_body(preset("tiny", positions=positions)) is body


@pytest.mark.parametrize(
    ("dtype", "length", "clip", "size", "triton", "body"),
    [
        (torch.bfloat16, 512, 64, 64, True, triton_attention),
        (torch.float32, 66, 64, 64, True, triton_attention),
        (torch.bfloat16, 65, 64, 64, True, sdpa_attention),
        (torch.bfloat16, 512, 511, 64, True, sdpa_attention),
        (torch.bfloat16, 512, None, 64, True, sdpa_attention),
        (torch.bfloat16, 512, 64, 64, False, table_attention),
        (torch.float64, 512, 64, 64, True, table_attention),
        (torch.bfloat16, 512, 64, 24, True, table_attention),
        (torch.bfloat16, 512, 4, 64, True, table_attention),
    ],
)
def test_what_auto_takes_on_a_gpu(dtype, length, clip, size, triton, body, monkeypatch):
    monkeypatch.setattr(attention, "_gpu_runs_triton", lambda: triton)
    q = torch.empty(1, 1, length, size, dtype=dtype, device="meta")
    table = None if clip is None else torch.empty(2 * clip + 1, size, device="meta")
    assert attention._fastest_on_gpu(q, table, KEEP) is body
