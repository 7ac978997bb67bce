"""LAMB against the paper's equations in fp64, in one process; test_lamb_ranks.py has the ranks."""

import math

import pytest
import torch
from torch import nn

from nezha_ds.errors import ConfigError
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.observe.metrics import PARTS
from nezha_ds.optim import lamb as optim
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb, LambSettings, foreach_adam, fused_adam, lamb_settings, whole_tensors
from nezha_ds.optim.norms import part_of, quantiles


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.wide = nn.Linear(7, 11)
        self.norm = nn.LayerNorm(11)
        self.narrow = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.tanh(self.norm(self.wide(x))))


def bound(model: nn.Module, settings: LambSettings) -> Lamb:
    lamb = Lamb(parameter_groups(model, settings.weight_decay), settings)
    lamb.bind(whole_tensors(model.named_parameters()), len(list(model.parameters())), None)
    return lamb


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


def paper(weights: list, decays: list[float], steps: int, settings: LambSettings, model: nn.Module) -> list:
    """Algorithm 2 of arXiv 1904.00962 for each tensor by itself, in fp64."""
    beta1, beta2 = settings.betas
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        for i, grad in enumerate(g.double() for g in gradients(model, t)):
            first[i] = beta1 * first[i] + (1 - beta1) * grad
            second[i] = beta2 * second[i] + (1 - beta2) * grad**2
            m, v = first[i], second[i]
            if settings.bias_correction:
                m, v = m / (1 - beta1**t), v / (1 - beta2**t)
            update = m / (v.sqrt() + settings.eps) + decays[i] * weights[i]
            ratio = float(weights[i].norm() / update.norm()) if weights[i].norm() and update.norm() else 1.0
            ratio = min(max(ratio, settings.min_coeff), settings.max_coeff)
            if weights[i].norm() == 0 or (decays[i] == 0 and not settings.adapt_undecayed):
                ratio = 1.0
            weights[i] = weights[i] - settings.lr * ratio * update
    return weights


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("adapt_undecayed", [True, False])
@pytest.mark.parametrize("bounds", [(0.0, 10.0), (0.2, 0.5)])
def test_it_is_the_papers(bias_correction, adapt_undecayed, bounds):
    settings = LambSettings(
        lr=0.02,
        bias_correction=bias_correction,
        adapt_undecayed=adapt_undecayed,
        min_coeff=bounds[0],
        max_coeff=bounds[1],
        weight_decay=0.1,
    )
    model = Model()
    start = [p.detach().double() for p in model.parameters()]
    decays = [0.1 if p.ndim > 1 else 0.0 for p in model.parameters()]
    lamb = bound(model, settings)
    for t in range(1, 11):
        for p, grad in zip(model.parameters(), gradients(model, t), strict=True):
            p.grad = grad
        lamb.step()
    for ours, theirs in zip(model.parameters(), paper(start, decays, 10, settings, model), strict=True):
        assert torch.allclose(ours.double(), theirs, atol=2e-6), (ours.double() - theirs).abs().max()


def test_before_it_is_bound_a_step_moves_nothing():
    """DeepSpeed's optimizer without ZeRO calls step() at construction: decay must not act and nothing must count."""
    model = Model()
    before = [p.detach().clone() for p in model.parameters()]
    lamb = Lamb(parameter_groups(model, 0.1), LambSettings())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    lamb.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert [group["step"] for group in lamb.param_groups] == [0, 0]


def test_a_tensor_of_zeros_moves_by_the_plain_update():
    weight = nn.Parameter(torch.zeros(4))
    lamb = Lamb([{"params": [weight], "weight_decay": 0.0}], LambSettings(lr=0.5))
    lamb.bind(whole_tensors([("w", weight)]), 1, None)
    weight.grad = torch.ones(4)
    lamb.step()
    assert torch.allclose(weight, torch.full((4,), -0.5), atol=1e-5)


def test_a_parameter_without_gradient_stays():
    model = Model()
    lamb = bound(model, LambSettings(lr=0.1))
    kept = model.narrow.weight.detach().clone()
    for p in (model.wide.weight, model.wide.bias):
        p.grad = torch.ones_like(p)
    lamb.step()
    assert torch.equal(model.narrow.weight, kept)
    assert not torch.equal(model.wide.weight, Model().wide.weight)


def test_a_step_size_does_not_depend_on_the_gradients_scale():
    """The ratio makes the update as long as the weights, times lr."""
    moved = []
    for scale in (1e-3, 1e3):
        model = Model()
        before = model.wide.weight.detach().clone()
        lamb = bound(model, LambSettings(lr=0.01, weight_decay=0.0))
        for p, grad in zip(model.parameters(), gradients(model, 1), strict=True):
            p.grad = grad * scale
        lamb.step()
        moved.append(float((model.wide.weight.detach() - before).norm() / before.norm()))
    assert math.isclose(moved[0], moved[1], rel_tol=1e-3)
    assert math.isclose(moved[0], 0.01, rel_tol=1e-3)


def test_norms_are_those_of_the_last_update():
    """And of a tensor that has had none, none."""
    model = Model()
    lamb = bound(model, LambSettings(lr=0.1, max_coeff=0.3))
    kept = model.narrow.weight.norm()
    for p, grad in list(zip(model.parameters(), gradients(model, 1), strict=True))[:-1]:
        p.grad = grad
    lamb.step()
    names = [name for name, _ in model.named_parameters()]
    weight, update, ratio = lamb.norms[names.index("narrow.weight")]
    assert torch.isclose(weight, kept)
    assert ratio == torch.clamp(weight / update, max=0.3)
    assert lamb.norms[-1].tolist() == [0.0, 0.0, 0.0]
    found = quantiles(model.named_parameters(), lamb.norms)
    heads = sorted(row for row in lamb.norms[:, 2][[0, 4]].tolist())
    assert found["heads"]["trust_ratio"] == (heads[0], sum(heads) / 2, heads[1])
    assert found["vectors"]["weight_norm"][0] == lamb.norms[[1, 2, 3], 0].min()


def test_every_tensor_has_a_part_and_every_part_tensors():
    model = NezhaForPreTraining(preset("tiny", vocab_size=99, num_hidden_layers=1, span_form="nezha"))
    found = {name: part_of(name, tensor) for name, tensor in model.named_parameters()}
    assert set(found.values()) == set(PARTS)
    assert found["encoder.embeddings.words.weight"] == "embeddings"
    assert found["encoder.blocks.0.attention.output.weight"] == "attention"
    assert found["encoder.blocks.0.narrow.weight"] == "feed_forward"
    assert found["encoder.pooler.weight"] == "heads"
    assert found["encoder.blocks.0.attention_norm.weight"] == "vectors"


def test_groups_decay_matrices_only():
    decay, no_decay = parameter_groups(Model(), 0.01)
    assert {p.ndim for p in decay["params"]} == {2}
    assert {p.ndim for p in no_decay["params"]} == {1}
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.01, 0.0)


def test_a_misspelt_option_names_the_right_one():
    with pytest.raises(ConfigError, match="did you mean 'max_coeff'"):
        lamb_settings({"max_coef": 1.0}, "x.json: optimizer.params")


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(ConfigError, match=r"min_coeff 2.0 is above max_coeff 1.0"):
        lamb_settings({"min_coeff": 2.0, "max_coeff": 1.0}, "x.json")


@pytest.mark.parametrize("portion", [1, 5, 64, 90])
def test_portions_of_any_size_give_the_same(portion, monkeypatch):
    """Tensors cut in the middle, several of them together, one element at a time."""

    def trained() -> list[torch.Tensor]:
        model = Model()
        lamb = bound(model, LambSettings(lr=0.02))
        for t in range(1, 4):
            for p, grad in zip(model.parameters(), gradients(model, t), strict=True):
                p.grad = grad
            lamb.step()
        return list(model.parameters())

    whole = trained()
    monkeypatch.setattr(optim, "PORTION", portion)
    for ours, theirs in zip(trained(), whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step", [1, 7, math.inf])
def test_the_fused_adam_is_the_plain_one(step):
    """On devices without the fused kernel the plain one runs."""
    torch.manual_seed(0)
    grads = [torch.randn(33), torch.randn(1000)]

    def advanced(how):
        averages = [torch.full_like(grad, 0.1) for grad in grads]
        squares = [torch.full_like(grad, 0.2) for grad in grads]
        return how([grad.clone() for grad in grads], averages, squares, step, LambSettings()), averages, squares

    for ours, theirs in zip(advanced(fused_adam), advanced(foreach_adam), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_gradient_may_lie_in_any_layout():
    def spread(grad: torch.Tensor) -> torch.Tensor:
        return torch.stack([grad, grad], dim=-1)[..., 0]

    def updated(layout) -> list[torch.Tensor]:
        model = Model()
        lamb = bound(model, LambSettings(lr=0.02))
        for p, grad in zip(model.parameters(), gradients(model, 1), strict=True):
            p.grad = layout(grad)
        lamb.step()
        return list(model.parameters())

    for ours, theirs in zip(updated(spread), updated(torch.clone), strict=True):
        assert torch.equal(ours, theirs)
