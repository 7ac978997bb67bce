"""Run by transformers' own interpreter: opens our folders, saves one of its own, and says what it computes on them.

.venv-hf/bin/python -m tests.model.oracle FOLDER answers whatever questions the folder holds, in one process, since
starting transformers takes most of the time:

    ours/ batch.npz           both directions of a folder: writes theirs, bert, *.npz, info.json
    cases/NAME/               a model and batch.npz: everything between input and gradients -> results.safetensors
    dropout/NAME/             a model and batch.npz of one row: moments over many copies of it -> results.safetensors
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, NezhaConfig, NezhaForPreTraining

from tests.golden.make_golden import random_model, run


def main(folder: Path) -> None:
    """Answer everything that is asked."""
    torch.set_num_threads(1)
    if (folder / "ours").exists():
        both_directions(folder)
    for case in sorted(folder.glob("cases/*")):
        save_file(everything(case), case / "results.safetensors")
    for case in sorted(folder.glob("dropout/*")):
        save_file(moments_under_dropout(case), case / "results.safetensors")


def both_directions(folder: Path) -> None:
    """What it computes on our folder, and a folder of its own; a BERT besides."""
    batch = dict(np.load(folder / "batch.npz"))
    opened, info = NezhaForPreTraining.from_pretrained(folder / "ours", output_loading_info=True)
    np.savez(folder / "ours.npz", **run(opened.eval(), batch))
    theirs = random_model(NezhaConfig(**opened.config.to_dict() | {"hidden_act": "gelu_new"}), seed=0)
    theirs.save_pretrained(folder / "theirs")
    np.savez(folder / "theirs.npz", **run(theirs, batch))
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    BertForMaskedLM(BertConfig(**{name: getattr(opened.config, name) for name in sizes})).save_pretrained(
        folder / "bert"
    )
    _, of_heads = NezhaForPreTraining.from_pretrained(folder / "heads", output_loading_info=True)
    for name, said in (("info.json", info), ("heads.json", of_heads)):
        (folder / name).write_text(json.dumps({kind: sorted(map(str, keys)) for kind, keys in said.items()}))


def everything(case: Path) -> dict[str, Tensor]:
    """States after each layer, attention probabilities, scores of both heads, the loss, all gradients."""
    model = NezhaForPreTraining.from_pretrained(case).eval()
    batch = read_batch(case)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (positions, wanted) in enumerate(zip(batch["mlm_positions"], batch["mlm_labels"], strict=True)):
        labels[row, positions[wanted != -100]] = wanted[wanted != -100]
    output = model(
        **inputs(batch),
        labels=labels,
        next_sentence_label=batch["next_sentence_labels"],
        output_hidden_states=True,
        output_attentions=True,
    )
    output.loss.backward()
    rows = torch.arange(len(labels))[:, None]
    results = {f"states/{layer}": states for layer, states in enumerate(output.hidden_states)}
    results |= {f"probabilities/{layer}": shares for layer, shares in enumerate(output.attentions)}
    results |= {
        "mlm_logits": output.prediction_logits[rows, batch["mlm_positions"]],
        "nsp_logits": output.seq_relationship_logits,
        "loss": output.loss,
    }
    results |= {f"gradients/{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: tensor.detach().contiguous() for name, tensor in results.items()}


def moments_under_dropout(case: Path) -> dict[str, Tensor]:
    """Mean, variance and fourth central moment of each state, over copies of one row in training mode."""
    model = NezhaForPreTraining.from_pretrained(case).train()
    batch = read_batch(case)
    copies = int(batch.pop("copies"))
    torch.manual_seed(1)
    with torch.no_grad():
        row = {name: tensor.expand(copies, -1) for name, tensor in inputs(batch).items()}
        states = model.nezha(**row, output_hidden_states=True).hidden_states
    found = {}
    for layer, tensor in enumerate(states):
        mean = tensor.mean(0)
        centred = tensor - mean
        found[f"{layer}/mean"] = mean
        found[f"{layer}/variance"] = centred.square().mean(0)
        found[f"{layer}/fourth"] = centred.pow(4).mean(0)
    return found


def read_batch(case: Path) -> dict[str, Tensor]:
    """Our batch, as tensors."""
    with np.load(case / "batch.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What their encoder takes."""
    ids = batch["input_ids"]
    seen = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
    return {"input_ids": ids, "token_type_ids": batch["token_type_ids"], "attention_mask": seen.long()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
