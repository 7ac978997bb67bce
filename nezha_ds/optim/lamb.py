"""LAMB (You et al., arXiv 1904.00962), per tensor, on any device, in any precision, under ZeRO 0, 1 and 2.

    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²
    u = m̂ / (√v̂ + ε) + λ w       w -= lr · clamp(‖w‖ / ‖u‖) · u       ratio 1 where a norm is 0

The two norms are of a whole model tensor. Under ZeRO an optimizer is given flat partitions of many tensors, and a LAMB
that takes them for tensors computes one ratio for a slice of the whole model: it trains, differently for every number
of ranks (DeepSpeed #88, open since 2020). Here `bind` tells which slice belongs to which tensor; the squared norms of
the slices are summed over the ranks in one all-reduce of a (tensors, 2) matrix a group. Which options make which of the
field's implementations is in docs/lamb.md, and tests/optim/test_lamb_variants.py holds it to that.

Cost: on a CPU memory is what takes the time, so tensors are gone through in portions that stay in the cache between the
passes; moments and direction are one pass of torch's fused Adam kernel, over an update that begins as zeros. Elsewhere
a portion is all tensors of a group, for the multi-tensor kernels. Nothing waits for the device.
"""

# torch.optim itself is written with the foreach functions, which torch does not export.
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from nezha_ds.config import Settings, build
from nezha_ds.errors import ConfigError
from nezha_ds.optim.slices import Slice

Share = Annotated[float, Field(ge=0, lt=1)]
AllReduce = Callable[[Tensor], None]
"""Sums a tensor over the ranks, in place."""
GradientNorm = Callable[[], Tensor]
"""The global norm of all ranks' gradients: (), fp32."""

PORTION = 1 << 18
"""Elements of a portion on a CPU: five arrays of 1 MiB. Half and four times as many are 5% and 15% slower."""
FUSED = frozenset({"cpu", "cuda"})
"""Devices for which torch has a fused Adam."""


class LambSettings(Settings):
    """The `params` of an optimizer of type "Lamb" in a DeepSpeed JSON; the defaults are NEZHA's."""

    lr: float = Field(default=1e-3, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the mean of gradients, and of the mean of their squares."""
    eps: float = Field(default=1e-6, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    bias_correction: bool = True
    """Divide both moments by 1 - βᵗ, inside the update and so before the ratio."""
    min_coeff: float = Field(default=0.0, ge=0)
    """Lower bound of the trust ratio."""
    max_coeff: float = Field(default=10.0, gt=0)
    """Upper bound of the trust ratio."""
    adapt_undecayed: bool = True
    """Whether tensors without weight decay (biases, LayerNorms) have a trust ratio too; NVIDIA's have none."""
    pre_normalize: bool = False
    """Divide all gradients by their global norm in every step, also where it is below 1; without gradient_clipping."""
    nezha_ratio: bool = False
    """Take ‖u‖ of m̂/√(v̂ + ε) + λw, with λ for every tensor, as NEZHA's released code does: ratios are larger where
    gradients are below √ε, ten times as large at 1e-4. What is added to the weights is u all the same."""


def lamb_settings(params: dict[str, Any], origin: str) -> LambSettings:
    """Validate the `params` of a DeepSpeed JSON's "Lamb"; ConfigError names the file, the key and the way out."""
    settings = build(LambSettings, params, origin)
    if settings.min_coeff > settings.max_coeff:
        raise ConfigError(
            f"{origin}: min_coeff {settings.min_coeff} is above max_coeff {settings.max_coeff}; swap them"
        )
    return settings


@dataclass(frozen=True, slots=True)
class Portion:
    """Slices of one parameter group that are updated together."""

    group: int
    """The group's number."""
    slices: list[Slice]
    tensors: Tensor
    """(slices,) int64, on the device: the number of each one's model tensor."""

    @property
    def weights(self) -> list[Tensor]:
        """Each slice of its owner."""
        return [piece.of(piece.owner) for piece in self.slices]


class Lamb(torch.optim.Optimizer):
    """LAMB over parameter groups; see the module's text. `step` does nothing before `bind` was called."""

    def __init__(self, groups: Iterable[dict[str, Any]], settings: LambSettings) -> None:
        # "step" is the t of the bias correction, kept by group: DeepSpeed's ZeRO optimizer calls `step` once for each
        # group, with the others hidden. Steps skipped for an overflow do not count.
        super().__init__(groups, {"lr": settings.lr, "weight_decay": settings.weight_decay, "step": 0})
        self.settings = settings
        self._slices: list[Slice] | None = None
        self._tensors = 0
        self._all_reduce: AllReduce | None = None
        self._given_norm: GradientNorm | None = None
        self._portions: dict[frozenset[int], list[Portion]] = {}

    def bind(
        self,
        slices: list[Slice],
        tensors: int,
        all_reduce: AllReduce | None,
        gradient_norm: GradientNorm | None = None,
    ) -> None:
        """Say which slices of which of the model's `tensors` this rank updates; collective.

        `all_reduce` sums over the ranks that share the tensors, and `gradient_norm` tells the global norm of the
        gradients that `step` is given; None where every rank has all of them whole. Until this is called `step` does
        nothing: DeepSpeed's optimizer without ZeRO calls it once at construction, with zero gradients, which would
        decay the weights and count an update.
        """
        assert gradient_norm or not (all_reduce and self.settings.pre_normalize)
        self._slices, self._tensors = slices, tensors
        self._all_reduce, self._given_norm = all_reduce, gradient_norm
        self._portions.clear()
        for group in self.param_groups:
            self._make_moments(group["params"])
        self._adapted = self._find_adapted()
        self._norms = torch.zeros(tensors, 3, device=self._device)

    @property
    def norms(self) -> Tensor:
        """(tensors, 3) on the device, the same on every rank: ‖w‖, ‖u‖ and ratio of each tensor's last update.

        Rows of tensors that were never updated are 0.
        """
        return self._norms

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Gradients are fp32, or as the parameters are.

        They are used up: what they hold afterwards means nothing.
        """
        assert closure is None, "a closure would hide the overflow check"
        if self._slices is None:
            return
        for group in self.param_groups:
            group["step"] += 1
        portions = self._with_gradients()
        # Every rank takes part in the sum, also one that holds no slice.
        squared = torch.zeros(self._tensors, 2, device=self._device)
        divisor = self._gradient_norm() if self.settings.pre_normalize else None
        updates: list[list[Tensor]] = []
        for portion in portions:
            directions = self._directions(portion, divisor)
            measured = self._nezha_directions(portion) if self.settings.nezha_ratio else directions
            norms = torch.stack([torch.stack(torch._foreach_norm(x)) for x in (portion.weights, measured)], dim=1)
            squared.index_add_(0, portion.tensors, norms.float().square())
            updates.append(directions)
        if self._all_reduce is not None:
            self._all_reduce(squared)
        ratios = self._ratios(squared)
        for portion, directions in zip(portions, updates, strict=True):
            scales = ratios[portion.tensors].to(directions[0].dtype)
            rate = self.param_groups[portion.group]["lr"]
            torch._foreach_addcmul_(portion.weights, directions, list(scales.unbind()), value=-rate)
        # A call may be for one group of several: the other rows stay.
        updated = (squared != 0).any(dim=1, keepdim=True)
        self._norms = torch.where(updated, torch.cat([squared.sqrt(), ratios[:, None]], dim=1), self._norms)

    @property
    def _device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device

    def _find_adapted(self) -> Tensor:
        """(tensors,) bool: which have a trust ratio. Of tensors whose slices lie elsewhere the other ranks tell."""
        decays = {id(param): group["weight_decay"] for group in self.param_groups for param in group["params"]}
        adapted = torch.zeros(self._tensors)
        for piece in self._slices or ():
            adapted[piece.index] = float(decays[id(piece.owner)] > 0 or self.settings.adapt_undecayed)
        adapted = adapted.to(self._device)
        if self._all_reduce is not None:
            self._all_reduce(adapted)
        return adapted > 0

    def _gradient_norm(self) -> Tensor:
        """(), fp32: the global norm of all gradients, never 0."""
        if self._given_norm is not None:
            norm = self._given_norm()
        else:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(grads, dtype=torch.float32)).norm()
        return norm.clamp(min=torch.finfo(torch.float32).tiny)

    def _make_moments(self, params: list[Tensor]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param]["exp_avg"] = torch.zeros_like(param, requires_grad=False)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param, requires_grad=False)

    def _with_gradients(self) -> list[Portion]:
        """What is updated now: the slices whose owners have a gradient.

        Kept, because the numbers lie on the device and the same owners are updated in nearly every step.
        """
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        updated = frozenset(id(param) for params in groups for param in params)
        if updated not in self._portions:
            self._portions[updated] = [
                portion for number, params in enumerate(groups) for portion in self._cut(number, params)
            ]
        return self._portions[updated]

    def _cut(self, group: int, params: list[Tensor]) -> Iterator[Portion]:
        self._make_moments(params)
        owners = {id(param) for param in params}
        slices = [piece for piece in self._slices or () if id(piece.owner) in owners]
        for pieces in cut(slices, PORTION if params and params[0].device.type == "cpu" else None):
            numbers = torch.tensor([piece.index for piece in pieces], device=pieces[0].owner.device)
            yield Portion(group, pieces, numbers)

    def _directions(self, portion: Portion, divisor: Tensor | None) -> list[Tensor]:
        """Advance the moments by the gradients, divided by `divisor`; each slice's u, without the ratio."""
        group = self.param_groups[portion.group]
        grads = [
            piece.of(cast(Tensor, piece.owner.grad).contiguous()).to(piece.owner.dtype) for piece in portion.slices
        ]
        averages, squares = self._moments(portion)
        advance = fused_adam if grads[0].device.type in FUSED else foreach_adam
        directions = advance(grads, averages, squares, self._time(portion), self.settings, divisor)
        if group["weight_decay"]:
            torch._foreach_add_(directions, portion.weights, alpha=group["weight_decay"])
        if grads[0].device.type != "cpu":
            return directions
        # They wait for their ratios where the gradients were: fresh memory took 170 of 440 ms, its pages being made.
        torch._foreach_copy_(grads, directions)
        return grads

    def _nezha_directions(self, portion: Portion) -> list[Tensor]:
        """m̂/√(v̂ + ε) + λw of each slice, of the moments as they are: what NEZHA's ratio measures."""
        averages, squares = self._moments(portion)
        (beta1, beta2), step = self.settings.betas, self._time(portion)
        denominators = torch._foreach_div(squares, 1 - beta2**step)
        torch._foreach_add_(denominators, self.settings.eps)
        torch._foreach_sqrt_(denominators)
        directions = torch._foreach_div(averages, denominators)
        torch._foreach_mul_(directions, 1 / (1 - beta1**step))
        torch._foreach_add_(directions, portion.weights, alpha=self.settings.weight_decay)
        return list(directions)

    def _moments(self, portion: Portion) -> tuple[list[Tensor], list[Tensor]]:
        states = [(piece, self.state[piece.owner]) for piece in portion.slices]
        return [piece.of(state["exp_avg"]) for piece, state in states], [
            piece.of(state["exp_avg_sq"]) for piece, state in states
        ]

    def _time(self, portion: Portion) -> float:
        """The t of the bias correction."""
        return self.param_groups[portion.group]["step"] if self.settings.bias_correction else math.inf

    def _ratios(self, squared: Tensor) -> Tensor:
        """(tensors, 2) squared norms of weights and updates -> (tensors,) trust ratios."""
        weights, updates = squared.sqrt().unbind(dim=1)
        ratios = (weights / updates).clamp(self.settings.min_coeff, self.settings.max_coeff)
        return torch.where(self._adapted & (weights > 0) & (updates > 0), ratios, 1.0)


def fused_adam(
    grads: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    step: float,
    settings: LambSettings,
    divisor: Tensor | None = None,
) -> list[Tensor]:
    """m̂ / (√v̂ + ε) of step t, with the moments m and v advanced in place; t = inf corrects no bias.

    `divisor`, (), fp32, divides the gradients in the same pass.
    """
    directions = [torch.zeros_like(average) for average in averages]
    t = torch.full((), step, device=averages[0].device)
    # A step of Adam from zero with lr -1.
    torch._fused_adam_(
        directions,
        grads,
        averages,
        squares,
        [],
        [t] * len(grads),
        lr=-1.0,
        beta1=settings.betas[0],
        beta2=settings.betas[1],
        weight_decay=0.0,
        eps=settings.eps,
        amsgrad=False,
        maximize=False,
        grad_scale=divisor,
    )
    return directions


def foreach_adam(
    grads: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    step: float,
    settings: LambSettings,
    divisor: Tensor | None = None,
) -> list[Tensor]:
    """The same on a device without the fused kernel."""
    beta1, beta2 = settings.betas
    if divisor is not None:
        torch._foreach_div_(grads, divisor)
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominators = torch._foreach_sqrt(squares)
    # m/c1 / (√(v/c2) + ε) = m · (√c2/c1) / (√v + ε√c2): two passes fewer over the parameters.
    torch._foreach_add_(denominators, settings.eps * correction2**0.5)
    directions = torch._foreach_div(averages, denominators)
    torch._foreach_mul_(directions, correction2**0.5 / correction1)
    return list(directions)


def cut(slices: Iterable[Slice], limit: int | None) -> Iterator[list[Slice]]:
    """The slices in lists of at most `limit` elements, divided where they are longer; None: all in one list."""
    portion: list[Slice] = []
    room = math.inf if limit is None else limit
    for piece in slices:
        for part in divide(piece, limit or piece.numel):
            if part.numel > room:
                yield portion
                portion, room = [], limit or math.inf
            portion.append(part)
            room -= part.numel
    if portion:
        yield portion


def divide(piece: Slice, limit: int) -> Iterator[Slice]:
    """The slice in parts of at most `limit` elements."""
    for done in range(0, piece.numel, limit):
        size = min(limit, piece.numel - done)
        yield replace(piece, offset=piece.offset + done, start=piece.start + done, numel=size)


def whole_tensors(named: Iterable[tuple[str, Tensor]]) -> list[Slice]:
    """The slices of a model whose tensors the optimizer updates as they are: no ZeRO."""
    return [Slice(name, index, 0, t.numel(), t, 0) for index, (name, t) in enumerate(named)]
