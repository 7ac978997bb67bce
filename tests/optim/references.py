"""The field's LAMBs in fp64, each one tensor at a time, written from the formulas of the public source that it names.

Each takes the weights, the gradients of every step and the weight decay of every tensor, and returns the weights after
the last step. lr, betas and steps are common to all. Slow and plain on purpose.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LR, BETA1, BETA2, DECAY = 0.02, 0.9, 0.999, 0.01

Gradients = list[list[Tensor]]
Rule = Callable[[int, Tensor, Tensor, Tensor, float], tuple[Tensor, float]]
"""(t, w, m, v, decay) -> (what is subtracted before lr, factor of lr)."""


def train(weights: list[Tensor], gradients: Gradients, decays: list[float], rule: Rule) -> list[Tensor]:
    weights = [w.double() for w in weights]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for t, grads in enumerate(gradients, start=1):
        for i, grad in enumerate(g.double() for g in grads):
            first[i] = BETA1 * first[i] + (1 - BETA1) * grad
            second[i] = BETA2 * second[i] + (1 - BETA2) * grad**2
            update, factor = rule(t, weights[i], first[i], second[i], decays[i])
            weights[i] = weights[i] - LR * factor * update
    return weights


def norm_of(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def clipped(gradients: Gradients, limit: float = 1.0) -> Gradients:
    """Each step's gradients, divided by norm / limit where the global norm is above the limit."""
    return [[g.double() / max(1.0, norm_of(grads) / limit) for g in grads] for grads in gradients]


def unbiased(t: int, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return m / (1 - BETA1**t), v / (1 - BETA2**t)


def ratio(w: Tensor, u: Tensor) -> float:
    return float(w.norm() / u.norm()) if w.norm() > 0 and u.norm() > 0 else 1.0


def paper(weights: list[Tensor], gradients: Gradients, decays: list[float]) -> list[Tensor]:
    """Algorithm 2 of arXiv 1904.00962, φ the identity."""

    def rule(t: int, w: Tensor, m: Tensor, v: Tensor, decay: float) -> tuple[Tensor, float]:
        m, v = unbiased(t, m, v)
        update = m / (v.sqrt() + 1e-6) + decay * w
        return update, ratio(w, update)

    return train(weights, gradients, decays, rule)


def nezha(weights: list[Tensor], gradients: Gradients, decays: list[float]) -> list[Tensor]:
    """LAMBOptimizer of NEZHA-TensorFlow/optimization.py, behind its clip_by_global_norm."""

    def rule(t: int, w: Tensor, m: Tensor, v: Tensor, decay: float) -> tuple[Tensor, float]:
        m, v = unbiased(t, m, v)
        measured = m / (v + 1e-6).sqrt() + DECAY * w
        return m / (v.sqrt() + 1e-6) + decay * w, min(max(ratio(w, measured), 0.0), 10.0)

    return train(weights, clipped(gradients), decays, rule)


def apex(nvlamb: bool) -> Callable[[list[Tensor], Gradients, list[float]], list[Tensor]]:
    """FusedLAMB of apex/optimizers/fused_lamb.py with csrc/multi_tensor_lamb.cu, max_grad_norm 1."""

    def rule(t: int, w: Tensor, m: Tensor, v: Tensor, decay: float) -> tuple[Tensor, float]:
        m, v = unbiased(t, m, v)
        update = m / (v.sqrt() + 1e-6) + decay * w
        return update, ratio(w, update) if nvlamb or decay else 1.0

    return lambda weights, gradients, decays: train(weights, clipped(gradients), decays, rule)


def unit(weights: list[Tensor], gradients: Gradients, decays: list[float]) -> list[Tensor]:
    """NVLAMB by the words of its step 2, gradients of unit norm in every step."""
    normalised = [[g.double() / norm_of(grads) for g in grads] for grads in gradients]
    return paper(weights, normalised, decays)


def deepspeed(
    bias_correction: bool, max_coeff: float
) -> Callable[[list[Tensor], Gradients, list[float]], list[Tensor]]:
    """FusedLamb of DeepSpeed 0.19, csrc/lamb/fused_lamb_cuda_kernel.cu: the correction scales the step."""

    def rule(t: int, w: Tensor, m: Tensor, v: Tensor, decay: float) -> tuple[Tensor, float]:
        update = m / (v.sqrt() + 1e-8) + decay * w
        bounded = min(max(ratio(w, update), 0.01), max_coeff) if w.norm() > 0 and update.norm() > 0 else 1.0
        return update, bounded * (late_step_size(t) if bias_correction else 1.0)

    return lambda weights, gradients, decays: train(weights, gradients, decays, rule)


def late_step_size(t: int) -> float:
    """What DeepSpeed's bias correction multiplies the learning rate by."""
    return math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
