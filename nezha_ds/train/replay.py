"""`nezha-ds replay DUMP`: the step of a dump once more, in one process, and whether it comes out the same.

The micro-batches of all ranks run one after another, each rank's with the dropout seed that the rank had, through the
model in the precision that it had; gradients add up in fp32. DeepSpeed has no part in it, so what comes out as it was
lies in weights, text or model, and what does not came from elsewhere: a device, a library, a broken collective.

How near is the same. A loss or gradient that was no number must be none again, and one that was must be one. Beyond
that, where the same dropout can be drawn (the same kind of device, not compiled; or none at all), losses must agree
within 1e-4 of their size in fp32 and 2% in half precision, and norms by layer within 1% and 10%, since ranks add up in
another order. Elsewhere, as on a CPU with the dump of a GPU, dropout is drawn anew: losses within a quarter, and norms
are shown beside each other and not judged.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import isclose, isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nezha_ds.batch import Batch
from nezha_ds.config import build
from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import hf_name
from nezha_ds.model.sound import refuse_other_sizes
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.dump import Dump, Gradient, read_dump
from nezha_ds.train.loop import dropout_seed
from nezha_ds.train.run import freeze_unused

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSSES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
NORMS = {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.1}
ANEW = 0.25
"""Relative differences that are rounding; ANEW is for losses where dropout is drawn anew."""


@dataclass(frozen=True)
class Found:
    """A micro-batch computed again."""

    rank: int
    number: int
    """Within the rank's step."""
    told: float
    """Its loss by the dump."""
    loss: float
    samples: list[int]
    """Their numbers in the plan."""
    begins: str | None
    """The first module whose output holds what is no number; None where none does."""


@dataclass(frozen=True)
class Replay:
    """A step computed again, beside what its dump says."""

    dump: Dump
    device: str
    micro_batches: list[Found]
    gradients: dict[str, Gradient]
    """By the model's name of the tensor."""

    @property
    def same_draws(self) -> bool:
        """Whether dropout here is dropout there."""
        config = self.dump.model
        without = config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0
        compiled = self.dump.recipe["recipe"]["train"].get("compile", False)
        return without or (self.device == self.dump.device and not compiled)

    @property
    def differences(self) -> list[str]:
        """What did not come out as it was, a line each; none: the step is reproduced."""
        near = LOSSES[self.dump.precision] if self.same_draws else ANEW
        lines = [
            f"rank {one.rank}, micro-batch {one.number}: loss {one.loss:.6g}, and {one.told:.6g} by the dump"
            for one in self.micro_batches
            if not _agree(one.loss, one.told, near)
        ]
        told, found = by_layer(self.dump.gradients), by_layer(self.gradients)
        for layer, norm in found.items():
            by_dump = told.get(layer, 0.0)
            same = _agree(norm, by_dump, NORMS[self.dump.precision])
            if not (same if self.same_draws else isfinite(norm) == isfinite(by_dump)):
                lines.append(f"{layer}: norm of gradients {norm:.4g}, and {by_dump:.4g} by the dump")
        return lines


def replay(folder: Path, device: str | None = None) -> Replay:
    """Compute the step of a dump again on `device`, the GPU if there is one.

    CheckpointError for a dump that does not verify, LaunchError for a device that is not there.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise LaunchError("torch sees no GPU here; leave --device out, or take --device cpu")
    dump, weights, batches = read_dump(folder)
    objective = build(ObjectiveSettings, dump.recipe.get("recipe", {}).get("objective", {}), str(folder))
    model = _model(dump, weights, objective, folder).to(chosen, DTYPES[dump.precision])
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in _trained(model)}
    micro_batches = []
    for rank, own in enumerate(batches):
        torch.manual_seed(dropout_seed(dump.seed, dump.step - 1, rank))
        for number, batch in enumerate(own):
            loss, begins = _micro_batch(model, batch.to(chosen), dump, objective, (rank, number))
            micro_batches.append(
                Found(rank, number, dump.losses[rank][number], loss, batch.sample_ids.tolist(), begins)
            )
            for name, parameter in _trained(model):
                if parameter.grad is not None:
                    sums[name] += parameter.grad.float()
                parameter.grad = None
    scale = (dump.loss_scale or 1) * len(batches)
    gradients = {name: _judged(total / scale) for name, total in sums.items()}
    return Replay(dump, chosen.type, micro_batches, gradients)


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _model(dump: Dump, weights: dict[str, Tensor], objective: ObjectiveSettings, folder: Path) -> NezhaForPreTraining:
    """The model as it was before the step, sound or not."""
    refuse_other_sizes(dump.model, weights, str(folder))
    model = NezhaForPreTraining(dump.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = weights.get(hf_name(name))
            if found is None or found.shape != parameter.shape:
                raise CheckpointError(f"{folder} has no {hf_name(name)} of {tuple(parameter.shape)}; copy it again")
            parameter.copy_(found)
    freeze_unused(model, objective)
    return model.train()


def _micro_batch(
    model: NezhaForPreTraining, batch: Batch, dump: Dump, objective: ObjectiveSettings, place: tuple[int, int]
) -> tuple[float, str | None]:
    """Forward and backward of one; its loss, and where what is no number begins."""
    rank, number = place
    with _first_unsound(model) as begins:
        losses = pretraining_losses(model(batch), batch, objective, dump.shares[rank][number])
    (losses.total * (dump.loss_scale or 1) / len(dump.losses[rank])).backward()
    loss = float(losses.total.detach())
    return loss, next(iter(begins), None if isfinite(loss) else "the loss itself")


@contextmanager
def _first_unsound(model: nn.Module) -> Iterator[list[str]]:
    """A list that takes in, in the order in which they end, the modules whose output holds what is no number."""
    names: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: None if _is_sound(output) else names.append(name)
        )
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


def _is_sound(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if is_dataclass(output):
        output = tuple(getattr(output, field.name) for field in fields(output))
    return all(map(_is_sound, output)) if isinstance(output, tuple | list) else True


def _judged(gradient: Tensor) -> Gradient:
    finite = int(torch.isfinite(gradient).sum())
    return Gradient(norm=float(gradient.double().norm()), nonfinite=gradient.numel() - finite)


def _agree(one: float, other: float, tolerance: float) -> bool:
    if not (isfinite(one) and isfinite(other)):
        return isfinite(one) == isfinite(other)
    return isclose(one, other, rel_tol=tolerance, abs_tol=1e-9)


def layer_of(name: str) -> str:
    """`encoder.blocks.3` for what lies in a block, else the module that holds the tensor."""
    block = re.match(r"(.*?\.blocks\.\d+)\.", name)
    return block[1] if block else name.rpartition(".")[0] or name


def by_layer(gradients: dict[str, Gradient]) -> dict[str, float]:
    """Norms of the gradients by layer, in the model's order."""
    squares: dict[str, float] = {}
    for name, gradient in gradients.items():
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + gradient.norm**2
    return {layer: sqrt(square) for layer, square in squares.items()}


def to_text(found: Replay) -> str:
    """The replay for people."""
    return "\n".join(_lines(found))


def _lines(found: Replay) -> Iterator[str]:
    dump = found.dump
    yield dump.reason
    yield (
        f"replayed on {found.device} in {dump.precision}; the run was {len(dump.losses)} ranks on {dump.device}"
        + ("" if found.same_draws else ", so dropout is drawn anew")
    )
    for name, bad in dump.unsound_weights.items():
        yield f"weights: {name} held {bad:,} numbers that are NaN or infinite before the step"
    yield f"{'rank':>4} {'micro-batch':>11} {'loss':>12} {'by the dump':>12}  first module with NaN or infinity"
    for one in found.micro_batches:
        yield f"{one.rank:>4} {one.number:>11} {one.loss:>12.6g} {one.told:>12.6g}  {one.begins or '-'}"
    for one in found.micro_batches:
        if one.begins:
            yield f"samples of rank {one.rank}, micro-batch {one.number}: {', '.join(map(str, one.samples))}"
    told, again = by_layer(dump.gradients), by_layer(found.gradients)
    yield f"{'layer':<40} {'norm of gradients':>17} {'by the dump':>12}"
    for layer, norm in again.items():
        yield f"{layer:<40} {norm:>17.4g} {told.get(layer, 0.0):>12.4g}"
    yield from (f"differs: {line}" for line in found.differences)
    yield "reproduced" if not found.differences else "not reproduced: look for it outside weights, text and model"
