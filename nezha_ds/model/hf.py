"""NEZHA in Hugging Face's form: the names of its weights, its config.json, and folders that transformers opens.

What a folder says it is (`model_type`) decides who opens it and nobody misreads it:

    nezha       the released architecture: transformers up to 4.57.6, and version 5 with `import nezha_ds.hf`
    bert        learned absolute positions, Post-LN: a BERT under BERT's names, for every transformers
    nezha_ds    other positions, or Pre-LN: transformers 5 with `import nezha_ds.hf`; version 4 refuses the name

A door to safetensors, with weights.py and checkpoints. Tied weights are written once, as transformers writes them: the
decoder's matrix is the word embeddings and its bias `cls.predictions.bias`. Reading is strict: a key too many, too few
or of another shape is an error, since a model that silently keeps random weights costs a week.

Also read: the prefix `bert.` and the names gamma and beta of older PyTorch releases.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nezha_ds.config import build
from nezha_ds.errors import CheckpointError
from nezha_ds.files import make_folder, sync_folder, unwritable, write_atomically
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.sound import refuse_other_sizes, refuse_unsound

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WORDS = "nezha.embeddings.word_embeddings.weight"

# Ours to theirs; {} is the number of the block, and .weight or .bias follows.
NAMES: dict[str, str] = {
    "encoder.embeddings.words": "nezha.embeddings.word_embeddings",
    "encoder.embeddings.types": "nezha.embeddings.token_type_embeddings",
    "encoder.embeddings.positions": "nezha.embeddings.position_embeddings",
    "encoder.embeddings.norm": "nezha.embeddings.LayerNorm",
    "encoder.blocks.{}.attention.query": "nezha.encoder.layer.{}.attention.self.query",
    "encoder.blocks.{}.attention.key": "nezha.encoder.layer.{}.attention.self.key",
    "encoder.blocks.{}.attention.value": "nezha.encoder.layer.{}.attention.self.value",
    "encoder.blocks.{}.attention.output": "nezha.encoder.layer.{}.attention.output.dense",
    "encoder.blocks.{}.attention_norm": "nezha.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.blocks.{}.widen": "nezha.encoder.layer.{}.intermediate.dense",
    "encoder.blocks.{}.narrow": "nezha.encoder.layer.{}.output.dense",
    "encoder.blocks.{}.narrow_norm": "nezha.encoder.layer.{}.output.LayerNorm",
    "encoder.positions": "nezha.encoder.relative_positions",
    "encoder.final_norm": "nezha.encoder.FinalLayerNorm",
    "encoder.pooler": "nezha.pooler.dense",
    "mlm": "cls.predictions",
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.norm": "cls.predictions.transform.LayerNorm",
    "nsp": "cls.seq_relationship",
    # Nobody else has these: transformers passes over them.
    "sop": "cls.sentence_order",
    "span": "cls.span",
    "span.place.offsets": "cls.span.offset_embeddings",
    "span.layers.{}.dense": "cls.span.transform.{}.dense",
    "span.layers.{}.norm": "cls.span.transform.{}.LayerNorm",
}

# What older files call it, and what they hold besides; None is dropped on purpose.
LEGACY: dict[str, str | None] = {
    r"^bert\.": "nezha.",
    r"\.gamma$": ".weight",
    r"\.beta$": ".bias",
    r"\.relative_positions_encoding\.positions_encoding$": None,
    r"^nezha\.embeddings\.(token_type_ids|position_ids)$": None,
}

# Second names of tied tensors: dropped after a look that they are tied.
TIED: dict[str, str] = {
    "cls.predictions.decoder.weight": WORDS,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

ACTIVATIONS: dict[str, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_ACTIVATIONS_READ = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_OURS_ALONE = {"preset", "attention"}
_NOT_OF_BERT = {"positions", "norm"}
RELEASED = ("functional-relative", "post")  # positions and norm
VARIANT = "nezha_ds"
MODEL_TYPES = ("nezha", "bert", VARIANT)
HEADS: dict[str, str] = {"cls.sentence_order": "sentence_order", "cls.span": "span_form"}
"""Heads besides BERT's two, and the setting that says whether a model has one."""


def hf_name(name: str) -> str:
    """Hugging Face's name of one of our parameters: `mlm.bias` is `cls.predictions.bias`."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"\d+", module)
    template = re.sub(r"\d+", "{}", module)
    return f"{NAMES[template].format(number and number[0])}.{kind}"


def state_dict_to_hf(model: NezhaForPreTraining) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names, each once; they share memory with the model."""
    return {hf_name(name): tensor for name, tensor in model.state_dict().items()}


def load_hf_state(model: NezhaForPreTraining, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights under Hugging Face's names into the model, in its dtype and on its device.

    CheckpointError names the keys that are missing, unexpected, of another shape, or untied, and numbers that are none.
    """
    theirs = current_names(tensors)
    ours = {hf_name(name): parameter for name, parameter in model.named_parameters()}
    problems = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "unexpected": sorted(theirs.keys() - ours.keys()),
        "of another shape": [
            f"{name} {tuple(theirs[name].shape)} for {tuple(ours[name].shape)}"
            for name in sorted(ours.keys() & theirs.keys())
            if theirs[name].shape != ours[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_shortened(keys)}" for kind, keys in problems.items() if keys)
        way_out = "use the config.json they came with"
        if not problems["of another shape"] and all(
            name.startswith("cls.") for name in (*problems["missing"], *problems["unexpected"])
        ):
            way_out += ", or `nezha-ds convert`, which drops heads that it does not name and starts missing ones afresh"
        raise CheckpointError(f"these weights are not of this model ({told}); {way_out}")
    refuse_unsound(theirs, "the weights")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])


def save_folder(
    tensors: Mapping[str, Tensor], config: NezhaConfig, folder: Path, extra_files: Mapping[str, bytes] | None = None
) -> None:
    """Write a folder that `from_pretrained` of transformers and `load_folder` open.

    `tensors` are under NEZHA's names, as `state_dict_to_hf` gives them; `extra_files` are the vocabulary and
    the tokenizer's files by name. config.json comes last, so a folder that has one is whole.
    """
    make_folder(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    for name, data in (extra_files or {}).items():
        write_atomically(folder / name, data)
    prefix = "bert." if model_type(config) == "bert" else "nezha."
    whole = {re.sub(r"^nezha\.", prefix, name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(whole, folder / WEIGHTS, {"format": "pt"})
    dtype = str(next(iter(whole.values())).dtype).removeprefix("torch.")
    write_atomically(folder / CONFIG, json.dumps(config_to_hf(config) | {"torch_dtype": dtype}, indent=2) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, and synced; LaunchError when that is not possible.

    Copies no tensor that is contiguous and on the CPU, and leaves other threads of Python running (waits of 5 ms).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        safetensors.torch.save_file(dict(tensors), temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error if isinstance(error, OSError) else OSError(0, str(error))) from None


def load_folder(folder: Path) -> NezhaForPreTraining:
    """The fp32 model, in evaluation mode on the CPU, of a folder written by `save_folder` or by transformers.

    CheckpointError when a file is missing or damaged, or the weights do not fit the config.
    """
    config = config_from_hf(_read_json(folder / CONFIG), origin=str(folder / CONFIG))
    path = folder / WEIGHTS
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; export again")
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); export again, or save the model with save_pretrained of transformers 4.x"
        ) from None
    current = current_names(tensors)
    refuse_other_sizes(config, current, str(folder / CONFIG))
    refuse_unsound(current, path)
    model = NezhaForPreTraining(config)
    load_hf_state(model, current)
    return model.eval()


def model_type(config: NezhaConfig) -> str:
    """What a folder says it is: `nezha`, `bert` or `nezha_ds`."""
    return {RELEASED: "nezha", ("learned-absolute", "post"): "bert"}.get((config.positions, config.norm), VARIANT)


def config_to_hf(config: NezhaConfig) -> dict[str, Any]:
    """What config.json says of the model."""
    kind = model_type(config)
    values = config.model_dump(exclude=_OURS_ALONE | (_NOT_OF_BERT if kind == "bert" else set()))
    if kind == "bert" and config.span_form != "nezha":  # whose head alone has distances then
        del values["max_relative_position"]
    values["hidden_act"] = ACTIVATIONS[config.hidden_act]
    # Named only where there is such a head.
    values = {name: value for name, value in values.items() if name not in HEADS.values() or value}
    architecture = "BertForPreTraining" if kind == "bert" else "NezhaForPreTraining"
    return {"model_type": kind, "architectures": [architecture], **values}


def config_from_hf(values: Mapping[str, Any], origin: str) -> NezhaConfig:
    """The model of a config.json. Keys that do not describe the architecture are passed over.

    CheckpointError for another kind of model, activation or positions; ConfigError for sizes that cannot be.
    """
    kind, act = values.get("model_type", "nezha"), values.get("hidden_act", "gelu")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{origin}: model_type is {kind!r}, not {' or '.join(map(repr, MODEL_TYPES))}; "
            "choose the folder of a NEZHA model"
        )
    if act not in _ACTIVATIONS_READ:
        raise CheckpointError(
            f"{origin}: hidden_act {act!r} is not known; known are {', '.join(sorted(_ACTIVATIONS_READ))}"
        )
    ours = NezhaConfig.model_fields.keys() - _OURS_ALONE - (_NOT_OF_BERT if kind == "bert" else set())
    known = {name: values[name] for name in ours if name in values} | {"hidden_act": _ACTIVATIONS_READ[act]}
    if kind == "bert":
        known["positions"] = "learned-absolute"
        if (embedding := values.get("position_embedding_type", "absolute")) != "absolute":
            raise CheckpointError(
                f"{origin}: position_embedding_type {embedding!r} is not known; only BERT's own, 'absolute', is"
            )
    return build(NezhaConfig, known, origin)


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under today's names, without what is dropped on purpose and without second names.

    CheckpointError when a second name holds something else than the first.
    """
    renamed = {new: tensor for name, tensor in tensors.items() if (new := _current_name(name)) is not None}
    for second, first in TIED.items():
        if second in renamed and first in renamed and not torch.equal(renamed[second], renamed[first]):
            raise CheckpointError(f"{second} differs from {first}; NEZHA ties them, so this is another kind of model")
    return {name: tensor for name, tensor in renamed.items() if name not in TIED}


def _current_name(name: str) -> str | None:
    for pattern, replacement in LEGACY.items():
        if re.search(pattern, name):
            if replacement is None:
                return None
            name = re.sub(pattern, replacement, name)
    return name


def _shortened(keys: list[str]) -> str:
    """The first few of many keys."""
    rest = len(keys) - 4
    return ", ".join(keys[:4]) + (f" and {rest} more" if rest > 0 else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); name a folder that export wrote") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object; name a folder that export wrote")
    return values
