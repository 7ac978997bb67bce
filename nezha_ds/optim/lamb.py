"""LAMB (You et al., arXiv 1904.00962), per tensor, on any device, in any precision, under ZeRO 0, 1 and 2.

    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²
    u = m̂ / (√v̂ + ε) + λ w       w -= lr · clamp(‖w‖ / ‖u‖) · u       ratio 1 where a norm is 0

The two norms are of a whole model tensor. Under ZeRO an optimizer is given flat partitions of many tensors, and a LAMB
that takes them for tensors computes one ratio for a slice of the whole model: it trains, differently for every number
of ranks (DeepSpeed #88, open since 2020). Here `bind` tells which slice belongs to which tensor; the squared norms of
the slices are summed over the ranks in one all-reduce of a (tensors, 2) matrix a group.

Cost: four passes over the parameters as AdamW, two more for the norms; all arithmetic is batched over tensors, and
nothing waits for the device.
"""

# torch.optim itself is written with the foreach functions, which torch does not export.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterable
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


def lamb_settings(params: dict[str, Any], origin: str) -> LambSettings:
    """Validate the `params` of a DeepSpeed JSON's "Lamb"; ConfigError names the file, the key and the way out."""
    settings = build(LambSettings, params, origin)
    if settings.min_coeff > settings.max_coeff:
        raise ConfigError(
            f"{origin}: min_coeff {settings.min_coeff} is above max_coeff {settings.max_coeff}; swap them"
        )
    return settings


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
        self._numbered: dict[frozenset[int], tuple[list[Slice], Tensor]] = {}

    def bind(self, slices: list[Slice], tensors: int, all_reduce: AllReduce | None) -> None:
        """Say which slices of which of the model's `tensors` this rank updates.

        `all_reduce` sums over the ranks that share the tensors; None where every rank has them whole. Until this is
        called `step` only makes the moments: DeepSpeed's optimizer without ZeRO calls it once at construction, with
        zero gradients, which would decay the weights and count an update.
        """
        self._slices, self._tensors, self._all_reduce = slices, tensors, all_reduce
        self._numbered.clear()
        for group in self.param_groups:
            self._moments(group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Gradients are fp32, or as the parameters are."""
        assert closure is None, "a closure would hide the overflow check"
        if self._slices is None:
            return
        updates = {}
        for group in self.param_groups:
            group["step"] += 1
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                updates |= zip(map(id, params), self._directions(params, group), strict=True)
        self._scale_by_ratio(updates)
        for group in self.param_groups:
            params = [param for param in group["params"] if id(param) in updates]
            if params:
                torch._foreach_add_(params, [updates[id(param)] for param in params], alpha=-group["lr"])

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for param in params:
            if not self.state[param]:
                self.state[param]["exp_avg"] = torch.zeros_like(param, requires_grad=False)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param, requires_grad=False)
        states = [self.state[param] for param in params]
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Advance the moments and return u for each parameter, without its ratio."""
        beta1, beta2 = self.settings.betas
        grads = [cast(Tensor, param.grad).to(param.dtype) for param in params]
        averages, squares = self._moments(params)
        torch._foreach_lerp_(averages, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)

        corrected = self.settings.bias_correction
        correction1 = 1 - beta1 ** group["step"] if corrected else 1.0
        correction2 = 1 - beta2 ** group["step"] if corrected else 1.0
        denominators = torch._foreach_sqrt(squares)
        # m/c1 / (√(v/c2) + ε) = m · (√c2/c1) / (√v + ε√c2): two passes fewer over the parameters.
        torch._foreach_add_(denominators, self.settings.eps * correction2**0.5)
        updates = torch._foreach_div(averages, denominators)
        torch._foreach_mul_(updates, correction2**0.5 / correction1)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        return list(updates)

    def _scale_by_ratio(self, updates: dict[int, Tensor]) -> None:
        """Multiply each model tensor's update by its trust ratio, in place."""
        slices, index = self._adapted(frozenset(updates))
        steps = [piece.of(updates[id(piece.owner)]) for piece in slices]
        # Every rank takes part in the sum, also one that holds no slice.
        squared = torch.zeros(self._tensors, 2, device=index.device)
        if slices:
            weight_norms = torch._foreach_norm([piece.of(piece.owner) for piece in slices])
            update_norms = torch._foreach_norm(steps)
            norms = torch.stack([torch.stack(weight_norms), torch.stack(update_norms)], dim=1).float()
            squared.index_add_(0, index, norms.square())
        if self._all_reduce is not None:
            self._all_reduce(squared)
        if slices:
            torch._foreach_mul_(steps, list(self._ratios(squared)[index].to(steps[0].dtype).unbind()))

    def _adapted(self, updated: frozenset[int]) -> tuple[list[Slice], Tensor]:
        """The slices that have a trust ratio, of the owners updated now, and (slices,) their tensors' numbers.

        Kept, because the numbers lie on the device and the same owners are updated in nearly every step.
        """
        if updated not in self._numbered:
            adapted = {
                id(param)
                for group in self.param_groups
                if group["weight_decay"] or self.settings.adapt_undecayed
                for param in group["params"]
            }
            slices = [piece for piece in self._slices or () if id(piece.owner) in updated & adapted]
            device = self.param_groups[0]["params"][0].device
            self._numbered[updated] = (
                slices,
                torch.tensor([piece.index for piece in slices], dtype=torch.int64, device=device),
            )
        return self._numbered[updated]

    def _ratios(self, squared: Tensor) -> Tensor:
        """(tensors, 2) squared norms of weights and updates -> (tensors,) trust ratios."""
        weights, updates = squared.sqrt().unbind(dim=1)
        ratios = (weights / updates).clamp(self.settings.min_coeff, self.settings.max_coeff)
        return torch.where((weights > 0) & (updates > 0), ratios, 1.0)


def whole_tensors(named: Iterable[tuple[str, Tensor]]) -> list[Slice]:
    """The slices of a model whose tensors the optimizer updates as they are: no ZeRO."""
    return [Slice(name, index, 0, t.numel(), t, 0) for index, (name, t) in enumerate(named)]
