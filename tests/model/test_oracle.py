"""transformers 4.57.6 itself, in an environment of its own: it opens our folders and we open its."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from nezha_ds.model.convert import convert
from nezha_ds.model.hf import hf_name, load_folder, save_folder, state_dict_to_hf
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.model.samples import lively_model, random_batch, small_config

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-hf" / "bin" / "python"
LENGTHS = [150, 90, 3]

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Our export, the batch, and everything that oracle.py makes of them."""
    if not PYTHON.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{PYTHON} is missing, and CI must compare with transformers; run make .venv-hf")
        pytest.skip("make .venv-hf")
    folder = tmp_path_factory.mktemp("oracle")
    model, batch = lively_model(small_config(hidden_size=128)), random_batch(LENGTHS)
    save_folder(state_dict_to_hf(model), model.config, folder / "ours")
    more = lively_model(small_config(span_form="spanbert", sentence_order=True))
    save_folder(state_dict_to_hf(more), more.config, folder / "heads")
    names = ("input_ids", "token_type_ids", "lengths", "mlm_positions", "mlm_labels", "next_sentence_labels")
    np.savez(folder / "batch.npz", **{name: getattr(batch, name).numpy() for name in names})
    finished = subprocess.run([PYTHON, "-m", "tests.model.oracle", folder], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_it_opens_our_folder_with_no_key_missing_or_too_many(folder):
    problems = json.loads((folder / "info.json").read_text())
    assert problems == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


def test_it_passes_over_heads_that_it_does_not_know(folder):
    said = json.loads((folder / "heads.json").read_text())
    assert said["missing_keys"] == said["mismatched_keys"] == said["error_msgs"] == []
    heads = {name.rpartition(".")[0] for name in said["unexpected_keys"]}
    assert heads >= {"cls.span", "cls.span.offset_embeddings", "cls.sentence_order"}
    assert all(name.startswith(("cls.span", "cls.sentence_order")) for name in heads)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_both_compute_the_same_from_one_folder(folder, name):
    model, batch = load_folder(folder / name), random_batch(LENGTHS)
    output = model(batch)
    losses = pretraining_losses(output, batch, ObjectiveSettings(nsp=1.0))
    losses.total.backward()
    gradients = {f"gradients/{hf_name(key)}": parameter.grad for key, parameter in model.named_parameters()}
    ours = (
        {key: scores for key, scores in output._asdict().items() if scores is not None}
        | {"loss": losses.total}
        | gradients
    )
    with np.load(folder / f"{name}.npz") as theirs:
        for key in set(theirs.files) - {"hidden"}:
            torch.testing.assert_close(ours[key], torch.from_numpy(theirs[key]), atol=1e-4, rtol=1e-4)


def test_its_bert_becomes_a_start_for_training(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + number) for number in range(66))]
    (folder / "bert" / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    told = convert(folder / "bert", folder / "start")
    assert [line.partition(",")[0].partition(":")[0] for line in told] == [
        "absolute positions dropped",
        "starts afresh",
    ]
    assert told[1].endswith("cls.seq_relationship, nezha.pooler.dense")
    theirs = safetensors.torch.load_file(folder / "bert" / "model.safetensors")
    ours = state_dict_to_hf(load_folder(folder / "start"))
    kept = {name.replace("bert.", "nezha."): tensor for name, tensor in theirs.items() if "position" not in name}
    assert kept.keys() == {name for name in ours if "seq_relationship" not in name and "pooler" not in name}
    assert all(torch.equal(ours[name], tensor) for name, tensor in kept.items())
