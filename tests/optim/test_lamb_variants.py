"""The options in docs/lamb.md make the implementations beside which they stand: formulas in fp64, and timm's class."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nezha_ds.optim.lamb import Lamb, lamb_settings, whole_tensors
from tests.optim import references

ROOT = Path(__file__).parents[2]
TIMM_PYTHON = ROOT / ".venv-hf" / "bin" / "python"
STEPS = 12
SHAPES = ((7, 11), (11,), (40, 3), (3,), (5, 2, 2), (1,))

REFERENCES = {
    "paper": references.paper,
    "NEZHA": references.nezha,
    "DeepSpeed": references.deepspeed(False, 10.0),
    "DeepSpeed bing_bert": references.deepspeed(False, 0.3),
    "apex": references.apex(nvlamb=False),
    "apex nvlamb": references.apex(nvlamb=True),
    "NVLAMB, unit norm": references.unit,
}
TIMM: dict[str, dict[str, Any]] = {
    "timm": {},
    "timm always_adapt": {"always_adapt": True},
    "timm trust_clip": {"trust_clip": True},
    "timm unclipped": {"max_grad_norm": None, "bias_correction": False},
}


class Row(NamedTuple):
    """A line of the table."""

    params: dict[str, Any]
    clipping: float


def documented() -> dict[str, Row]:
    """docs/lamb.md: implementation -> the options that make it."""
    lines = re.findall(r"^\| `(.+?)` \|.*\| `(\{.*\})` \| ([\d.]+) \|$", (ROOT / "docs/lamb.md").read_text(), re.M)
    return {name: Row(json.loads(params), float(clipping)) for name, params, clipping in lines}


ROWS = documented()


def material() -> tuple[list[Tensor], references.Gradients, list[float]]:
    """Tensors of several sizes, one of zeros; gradients from far below √eps to above 1, global norms on both sides of
    1; the decay that is ours.
    """
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=generator) * 10.0 ** -(i % 3) for i, shape in enumerate(SHAPES)]
    weights[1].zero_()
    gradients = [
        [
            torch.randn(shape, generator=generator) * 10.0 ** -(i % 4) * 4.0 ** -(step % 3)
            for i, shape in enumerate(SHAPES)
        ]
        for step in range(STEPS)
    ]
    return weights, gradients, [references.DECAY if len(shape) > 1 else 0.0 for shape in SHAPES]


def ours(row: Row, rate_at=lambda t: 1.0) -> list[Tensor]:
    """What our LAMB makes of the material, clipped as DeepSpeed does; the rate of step t is multiplied by `rate_at`."""
    weights, gradients, decays = material()
    settings = lamb_settings({"lr": references.LR, **row.params}, "docs/lamb.md")
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(params, decays, strict=True)]
    lamb = Lamb(groups, settings)
    lamb.bind(whole_tensors((str(i), p) for i, p in enumerate(params)), len(params), None)
    for t, grads in enumerate(gradients, start=1):
        scale = max(1.0, (references.norm_of(grads) + 1e-6) / row.clipping) if row.clipping else 1.0
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad / scale
        for group in lamb.param_groups:
            group["lr"] = references.LR * rate_at(t)
        lamb.step()
    return [p.detach() for p in params]


def furthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of a tensor's elements, beside the tensor's largest."""
    return max(float((a.double() - b.double()).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_every_row_is_tested_and_every_test_has_a_row():
    assert ROWS.keys() == REFERENCES.keys() | TIMM.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_the_options_make_the_formulas(name):
    assert furthest(ours(ROWS[name]), REFERENCES[name](*material())) < 5e-6


def test_the_formulas_differ_where_the_options_do():
    """Otherwise the test above could not fail."""
    results = {name: reference(*material()) for name, reference in REFERENCES.items()}
    for name, row in ROWS.items():
        for other, theirs in results.items():
            if name in results and (row.params, row.clipping) != (ROWS[other].params, ROWS[other].clipping):
                assert furthest(results[name], theirs) > 1e-3, (name, other)


def test_deepspeeds_bias_correction_is_a_warm_up_of_the_rate():
    """docs/lamb.md says so: 0.316 of the rate at step 1, 0.15 at 10, 0.80 at 1000."""
    made = ours(ROWS["DeepSpeed"], references.late_step_size)
    assert furthest(made, references.deepspeed(True, 10.0)(*material())) < 5e-6
    assert [round(references.late_step_size(t), 3) for t in (1, 10, 1000)] == [0.316, 0.153, 0.795]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Tensor]:
    """What timm makes of the material."""
    if not TIMM_PYTHON.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{TIMM_PYTHON} is missing, and CI must compare with timm; run make .venv-hf")
        pytest.skip("make .venv-hf")
    folder = tmp_path_factory.mktemp("timm")
    weights, gradients, decays = material()
    tensors = {f"tensors/{i}": w for i, w in enumerate(weights)}
    tensors |= {f"gradients/{t}/{i}": g for t, grads in enumerate(gradients) for i, g in enumerate(grads)}
    save_file(tensors, folder / "question.safetensors")
    cases = {name: {"lr": references.LR, **options} for name, options in TIMM.items()}
    (folder / "question.json").write_text(json.dumps({"decays": decays, "cases": cases}))
    command = [TIMM_PYTHON, "-m", "tests.optim.timm_oracle", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "answer.safetensors")


@pytest.mark.oracle
@pytest.mark.parametrize("name", TIMM)
def test_the_options_make_timms(name, answers):
    theirs = [answers[f"{name}/{i}"] for i in range(len(SHAPES))]
    assert furthest(ours(ROWS[name]), theirs) < 5e-6
