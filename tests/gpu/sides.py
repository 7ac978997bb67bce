"""The models that are measured, each behind the same two calls: forward and backward, and the update.

Weights are made on the device: what they are has no part in the speed, and filling 326M of them on one core of the
host takes longer than measuring.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from nezha_ds.batch import Batch
from nezha_ds.model import heads
from nezha_ds.model.config import preset
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.bench.questions import RandomBatch, random_batch
from tests.gpu.cases import Group
from tests.gpu.mixed import MixedLamb

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OBJECTIVES = ObjectiveSettings(mlm=1, nsp=1)

OURS: dict[str, dict[str, str]] = {
    "triton": {"attention": "triton"},
    "table": {"attention": "table"},
    "unclipped": {"attention": "sdpa", "positions": "functional-relative-unclipped"},
    "bert": {"attention": "sdpa", "positions": "learned-absolute"},
}
"""What our configuration says of each side."""

Loss = Callable[[nn.Module, RandomBatch], Tensor]


class Side:
    """A model on a device with its optimizer and its batch."""

    def __init__(self, name: str, group: Group, device: torch.device) -> None:
        build, self._loss_of = (_ours, _our_loss) if name in OURS else (_theirs, _their_loss)
        with torch.device(device):
            self.model = build(name, group)
        _fill(self.model)
        self.model.to(DTYPES[group.dtype]).train()
        if group.compiled:
            for block in _blocks(self.model):
                block.compile()
        self.optimizer = MixedLamb(self.model)
        self._device, self._length = device, group.length
        self.set_batch(group.batch)

    def set_batch(self, samples: int) -> None:
        """Take batches of so many samples from now on."""
        self.batch = samples
        self.optimizer.forget_gradients()
        made = random_batch(samples, self._length)
        self._given = RandomBatch(*(tensor.to(self._device) for tensor in made))

    def loss(self) -> Tensor:
        """Forward of one batch, and both losses."""
        return self._loss_of(self.model, self._given)

    def forward_backward(self) -> Tensor:
        """Gradients of one batch; the loss, detached."""
        loss = self.loss()
        self.optimizer.backward(loss)
        return loss.detach()

    def update(self) -> None:
        """One LAMB step."""
        self.optimizer.step()


def predictions(length: int) -> int:
    """P of the batches made here."""
    return random_batch(1, length).positions.shape[1]


def _ours(name: str, group: Group) -> nn.Module:
    with patch.object(heads, "initialise"):
        longest = max(512, group.length)
        return heads.NezhaForPreTraining(preset(group.size, max_position_embeddings=longest, **OURS[name]))


def _our_loss(model: nn.Module, made: RandomBatch) -> Tensor:
    batch = Batch(
        input_ids=made.ids,
        token_type_ids=made.types,
        lengths=torch.full((len(made.ids),), made.ids.shape[1], device=made.ids.device),
        mlm_positions=made.positions,
        mlm_labels=made.labels,
        sample_ids=made.pairs,
        next_sentence_labels=made.pairs,
    )
    return pretraining_losses(model(batch), batch, OBJECTIVES).total


def _theirs(name: str, group: Group) -> nn.Module:
    import transformers

    config = preset(group.size)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes: dict[str, Any] = {size: getattr(config, size) for size in names}
    if name == "hf-bert":
        asked = transformers.BertConfig(**sizes, attn_implementation="sdpa")
        return transformers.BertForPreTraining(asked)
    if not hasattr(transformers, "NezhaForPreTraining"):
        raise LookupError(f"transformers {transformers.__version__} has no NEZHA; bring the wheels of 4.57.6")
    return transformers.NezhaForPreTraining(transformers.NezhaConfig(**sizes))


def _their_loss(model: nn.Module, made: RandomBatch) -> Tensor:
    return model(
        input_ids=made.ids,
        token_type_ids=made.types,
        attention_mask=torch.ones_like(made.ids),
        labels=torch.full_like(made.ids, -100).scatter_(1, made.positions, made.labels),
        next_sentence_label=made.pairs,
    ).loss


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the longest list of modules in it. All share one compilation."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len))


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """BERT's own distribution, from the device's generator."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
