"""How much arithmetic a step of pretraining needs, and what share of a device's peak that is.

Counted are the matrix products that a plain BERT of these sizes would make, two operations for each multiplication
and addition, the same for every attention body: relative positions, softmax, dropout, LayerNorm, GELU and the
optimizer count nothing, nor does what activation checkpointing computes again. So the figure is the *model* FLOPs
utilisation of PaLM (arXiv 2204.02311, appendix B), and positions earn nothing but must be paid for.

A sample of L tokens with P predictions, D hidden, F inside the feed-forward layers, V vocabulary:

    a block           8 L D² + 4 L² D + 4 L D F      four projections; scores and their mixture; the feed-forward layer
    masked language   2 P (D² + D V)                 on the predicted positions alone
    pairs             2 (D² + 2 D)                   next sentence or sentence order: the pooler and two scores
    spans             2 P (D (2 D + E) + D² + D V)   two states and a place of E numbers, two layers, the decoder

Backward makes two products for each one of forward, so that a step is three times that.
"""

import re
from typing import NamedTuple

import torch

from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.span import PLACES


class Peaks(NamedTuple):
    """The highest rate of dense matrix products that a vendor states, in TFLOPS; None: the device has no such unit."""

    bf16: float | None
    fp16: float


# By what torch.cuda.get_device_name says; the first that fits. From the vendor's data sheets, without sparsity and with
# sums in fp32. Not listed: what cannot be told apart by name alone.
PEAKS: tuple[tuple[str, Peaks], ...] = (
    (r"\bH100 PCIe\b", Peaks(756, 756)),
    (r"\bH[12]00 NVL\b", Peaks(835, 835)),
    (r"\b(H100|H200|H800|GH200)\b", Peaks(989, 989)),
    (r"\bB200\b", Peaks(2250, 2250)),
    (r"\bA[18]00\b", Peaks(312, 312)),
    (r"\bA30\b", Peaks(165, 165)),
    (r"\bA10\b", Peaks(125, 125)),
    (r"\bL40S\b", Peaks(362, 362)),
    (r"\bL4\b", Peaks(121, 121)),
    (r"\bV100-PCIE\b", Peaks(None, 112)),
    (r"\bV100\b", Peaks(None, 125)),
    (r"\bT4\b", Peaks(None, 65)),
)


def forward_flops(config: NezhaConfig, length: int, predictions: int, *, nsp: bool = False) -> int:
    """Floating-point operations of one sample forward, with the heads that the config names and with `nsp`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    block = 8 * length * hidden**2 + 4 * length**2 * hidden + 4 * length * hidden * inner
    decoder = hidden * config.vocab_size
    heads = 2 * predictions * (hidden**2 + decoder)
    if nsp or config.sentence_order:
        heads += 2 * (hidden**2 + 2 * hidden)
    if config.span_form is not None:
        place = PLACES[config.span_form](config).size
        heads += 2 * predictions * (hidden * (2 * hidden + place) + hidden**2 + decoder)
    return config.num_hidden_layers * block + heads


def step_flops(config: NezhaConfig, length: int, predictions: int, *, nsp: bool = False) -> int:
    """The same forward and backward: what a sample costs a training step."""
    return 3 * forward_flops(config, length, predictions, nsp=nsp)


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Operations a second that a device of this name could make in bf16 or fp16; None where that is not known."""
    peaks = next((peaks for pattern, peaks in PEAKS if re.search(pattern, device_name)), None)
    tera = peaks and {torch.bfloat16: peaks.bf16, torch.float16: peaks.fp16}.get(dtype)
    return None if tera is None else tera * 1e12
