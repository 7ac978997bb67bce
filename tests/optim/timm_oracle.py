"""Run by an interpreter that has timm: trains given tensors on given gradients with timm's Lamb.

    .venv-hf/bin/python -m tests.optim.timm_oracle FOLDER

FOLDER has question.safetensors (`tensors/I`, `gradients/STEP/I`) and question.json: the weight `decays` by tensor, and
`cases`, name -> options of timm's Lamb. The answer is answer.safetensors: `CASE/I`, each tensor after the last step.
"""

import importlib
import json
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@cache
def timm_lamb() -> Any:
    """timm's class, from its own file: `import timm` would want torchvision, for images."""
    spec = find_spec("timm")
    assert spec and spec.origin
    folder = Path(spec.origin).parent
    for name, path in (("timm", folder), ("timm.optim", folder / "optim")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    return importlib.import_module("timm.optim.lamb").Lamb


def train(question: dict[str, Tensor], decays: list[float], steps: int, options: dict[str, Any]) -> list[Tensor]:
    """The tensors after all steps."""
    tensors = [question[f"tensors/{i}"].clone().requires_grad_() for i in range(len(decays))]
    groups = [{"params": [tensor], "weight_decay": decay} for tensor, decay in zip(tensors, decays, strict=True)]
    optimizer = timm_lamb()(groups, **options)
    for step in range(steps):
        for i, tensor in enumerate(tensors):
            tensor.grad = question[f"gradients/{step}/{i}"].clone()
        optimizer.step()
    return [tensor.detach() for tensor in tensors]


def main(folder: Path) -> None:
    """Answer all cases."""
    question, asked = load_file(folder / "question.safetensors"), json.loads((folder / "question.json").read_text())
    steps = len({key.split("/")[1] for key in question if key.startswith("gradients/")})
    answers = {name: train(question, asked["decays"], steps, options) for name, options in asked["cases"].items()}
    save_file(
        {f"{name}/{i}": tensor for name, tensors in answers.items() for i, tensor in enumerate(tensors)},
        folder / "answer.safetensors",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
