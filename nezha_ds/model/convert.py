"""Folders of NEZHA and BERT, of whatever origin, to folders that this project and Hugging Face open; and to Huawei's.

    Hugging Face nezha, Huawei's NEZHA-PyTorch    as they are, older names too
    BERT                                          without its absolute positions: a start for training, not a NEZHA yet
    TensorFlow's checkpoints of either            with the tanh GELU that TensorFlow's code computes

Nothing is lost in silence: what `convert` returns says what was dropped, what was missing and starts afresh, and how
many rows another vocabulary kept. What cannot be explained is refused.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nezha_ds.errors import CheckpointError, DataError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import (
    CONFIG,
    HEADS,
    WORDS,
    config_from_hf,
    config_to_hf,
    current_names,
    hf_name,
    load_hf_state,
    model_type,
    save_folder,
    state_dict_to_hf,
)
from nezha_ds.model.sound import refuse_other_sizes, refuse_unsound
from nezha_ds.model.weights import read_weights
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import Vocabulary, load_vocabulary

HUAWEI_CONFIG = "bert_config.json"
VOCABULARY = "vocab.txt"
POSITIONS = "nezha.embeddings.position_embeddings.weight"
OUTPUT_BIAS = "cls.predictions.bias"
SPAN_BIAS = "cls.span.bias"

Form = Literal["huggingface", "huawei"]

# Heads that a model without pretraining's heads lacks, and heads of tasks that pretraining has no place for.
_MAY_START_AFRESH = re.compile(r"^(cls\.|nezha\.pooler\.)")
_OF_A_TASK = re.compile(r"^(classifier|qa_outputs|start_fc|end_fc|crf|fit_denses)\b")


@dataclass(frozen=True)
class Foreign:
    """What a folder of weights holds, under today's names."""

    config: NezhaConfig
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary | None
    lowercase: bool
    told: tuple[str, ...]
    """What a reader must know of it, a line each."""


def convert(
    source: Path,
    out: Path,
    *,
    form: Form = "huggingface",
    vocabulary: Path | None = None,
    resize: bool = False,
    activation: str | None = None,
) -> tuple[str, ...]:
    """Write the model of `source` into the new folder `out`; what was dropped, added or changed, a line each.

    `vocabulary` names the vocab.txt where the folder has none, or, with `resize`, another one to change to: shared
    entries keep their rows by name, new ones start afresh. `activation` overrides the GELU that the config names.
    CheckpointError when the weights are not a NEZHA's or BERT's, DataError for a vocabulary that does not fit,
    LaunchError when `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LaunchError(f"{out} is not empty; choose another folder, or remove it")
    foreign = read_foreign(source, activation)
    fitted, target = fit_vocabulary(foreign, source, load_vocabulary(vocabulary) if vocabulary else None, resize)
    model, told = fill(fitted)
    write = _write_huggingface if form == "huggingface" else _write_huawei
    write(out, model, target, fitted.lowercase)
    return told


# ---------------------------------------------------------------------------------------------------------- the reading


def read_foreign(folder: Path, activation: str | None = None) -> Foreign:
    """A folder of weights under today's names, with what its config and tokenizer say."""
    values, origin = _read_config(folder)
    is_tensorflow = any(folder.glob("*.index"))
    tensors = current_names(_with_prefix(read_weights(folder)))
    told: list[str] = []
    config = _config_of(values, activation, origin)
    is_absolute = config.positions == "learned-absolute"
    dropped = [name for name in tensors if (name == POSITIONS and not is_absolute) or _OF_A_TASK.match(name)]
    if POSITIONS in dropped:
        told.append("absolute positions dropped: this was a BERT, and its layers must learn relative ones by training")
    if heads := sorted({name.partition(".")[0] for name in dropped} - {"nezha"}):
        told.append(f"heads of a task dropped: {', '.join(heads)}")
    if is_tensorflow and not activation and config.hidden_act == "gelu":
        config = config.model_copy(update={"hidden_act": "gelu_tanh"})
        told.append("GELU by tanh: TensorFlow's code computes it so")
    if heads := [head for head, setting in HEADS.items() if not getattr(config, setting) and _any_of(head, tensors)]:
        told.append(f"heads dropped, as the config does not name them: {', '.join(heads)}")
        dropped += [name for name in tensors if name.startswith(tuple(f"{head}." for head in heads))]
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    refuse_other_sizes(config, kept, origin, but=frozenset({"vocab_size"}))
    refuse_unsound(kept, folder)
    lowercase = _read_json(folder / "tokenizer_config.json", {}).get("do_lower_case", True)
    path = folder / VOCABULARY
    return Foreign(
        config=config,
        tensors={name: tensor.float() for name, tensor in kept.items()},
        vocabulary=load_vocabulary(path) if path.exists() else None,
        lowercase=lowercase is not False,
        told=tuple(told),
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    for name in (CONFIG, HUAWEI_CONFIG):
        if (folder / name).exists():
            return _read_json(folder / name, None), str(folder / name)
    raise CheckpointError(f"{folder} has neither {CONFIG} nor {HUAWEI_CONFIG}; add the one that the weights came with")


def _read_json(path: Path, default: dict[str, Any] | None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object; copy it again")
    return values


def _config_of(values: Mapping[str, Any], activation: str | None, origin: str) -> NezhaConfig:
    """BERT's config is NEZHA's without a clip, for which NEZHA's own 64 is taken; Huawei's has no model_type."""
    kind = values.get("model_type", "nezha")
    known = dict(values) | {"model_type": "nezha" if kind in ("nezha", "bert") else kind}
    config = config_from_hf(known, origin)
    return config.model_copy(update={"hidden_act": activation}) if activation else config


def _with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A bare encoder's names under the prefix that they have in a whole model."""
    bare = re.compile(r"^(embeddings|encoder|pooler)\.")
    return {f"nezha.{name}" if bare.match(name) else name: tensor for name, tensor in tensors.items()}


def _any_of(head: str, tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(f"{head}.") for name in tensors)


# ------------------------------------------------------------------------------------------------------- the vocabulary


def fit_vocabulary(
    foreign: Foreign, source: Path, wanted: Vocabulary | None, resize: bool
) -> tuple[Foreign, Vocabulary]:
    """The model with one row an entry of the vocabulary that it shall have, and that vocabulary.

    1. The folder's own vocabulary when its entries are the rows; 2. `wanted` where the folder has none; 3. rows taken
    by name when `resize` allows it. DataError for anything else.
    """
    rows = foreign.tensors[WORDS].shape[0] if WORDS in foreign.tensors else 0
    own, target = foreign.vocabulary, wanted or foreign.vocabulary
    if target is None:
        raise DataError(f"{source} has no {VOCABULARY}; name it with --vocabulary")
    foreign = replace(foreign, config=foreign.config.model_copy(update={"vocab_size": len(target)}))
    if len(target) == rows and (own is None or own.tokens == target.tokens):
        return foreign, target
    if not resize:
        other = "" if own is None or own.tokens == target.tokens else f" of other entries than {source / VOCABULARY}"
        raise DataError(
            f"the weights have {rows:,} rows of words and the vocabulary {len(target):,} entries{other}; name the "
            "vocabulary that they came with, or keep shared entries by name with --resize"
        )
    if own is None:
        raise DataError(f"{source} has no {VOCABULARY}, so nobody knows which row is whose; add it there to resize")
    if len(own) > rows:
        raise DataError(
            f"{source / VOCABULARY} has {len(own):,} entries for {rows:,} rows of words; add the one they came with"
        )
    return _resized(foreign, own, target), target


def _resized(foreign: Foreign, own: Vocabulary, target: Vocabulary) -> Foreign:
    """Rows of entries that both vocabularies have, by name; the others are drawn as a fresh model's are."""
    old = torch.tensor([own.ids.get(token, -1) for token in target.tokens])
    shared = old >= 0
    fresh = state_dict_to_hf(NezhaForPreTraining(foreign.config))
    tensors = dict(foreign.tensors)
    for name in (WORDS, OUTPUT_BIAS, SPAN_BIAS):
        if name in tensors:
            rows = fresh[name].clone()
            rows[shared] = tensors[name][old[shared]]
            tensors[name] = rows
    kept, lost = int(shared.sum()), len(own) - int(shared.sum())
    told = f"vocabulary: {kept:,} entries kept by name, {len(target) - kept:,} new ones start afresh, {lost:,} gone"
    config = foreign.config.model_copy(update={"pad_token_id": target.pad_id})
    return replace(foreign, config=config, tensors=tensors, told=(*foreign.told, told))


# ---------------------------------------------------------------------------------------------------------- the writing


def fill(foreign: Foreign) -> tuple[NezhaForPreTraining, tuple[str, ...]]:
    """The whole model, heads that the weights lack starting afresh, and all that is to be told."""
    model = NezhaForPreTraining(foreign.config)
    fresh = state_dict_to_hf(model)
    lacking = {hf_name(name) for name, _ in model.named_parameters()} - foreign.tensors.keys()
    absent = sorted(name for name in lacking if _MAY_START_AFRESH.match(name))
    load_hf_state(model, {**foreign.tensors, **{name: fresh[name].clone() for name in absent}})
    heads = sorted({name.rpartition(".")[0] for name in absent})
    told = (f"starts afresh, as the weights lack it: {', '.join(heads)}",) if heads else ()
    return model.eval(), (*foreign.told, *told)


def _write_huggingface(out: Path, model: NezhaForPreTraining, vocabulary: Vocabulary, lowercase: bool) -> None:
    files = tokenizer_files(vocabulary, lowercase, model.config.max_position_embeddings)
    save_folder(state_dict_to_hf(model), model.config, out, files)


def _write_huawei(out: Path, model: NezhaForPreTraining, vocabulary: Vocabulary, lowercase: bool) -> None:
    """As NEZHA-PyTorch's `from_pretrained` reads it: prefix `bert.`, the tied matrix twice, bert_config.json."""
    del lowercase  # its scripts take it as an argument
    if model_type(model.config) != "nezha":
        raise CheckpointError(
            f"Huawei's code has functional relative positions and Post-LN alone, this model positions = "
            f"{model.config.positions!r} and norm = {model.config.norm!r}; convert to the form huggingface"
        )
    if model.config.hidden_act != "gelu":  # its table of activations has no other
        raise CheckpointError("Huawei's PyTorch code knows the GELU by erf alone; convert with --activation gelu")
    make_folder(out)
    tensors = {re.sub(r"^nezha\.", "bert.", name): tensor for name, tensor in state_dict_to_hf(model).items()}
    tensors["cls.predictions.decoder.weight"] = model.encoder.embeddings.words.weight.detach()
    values = config_to_hf(model.config) | {"use_relative_position": True}
    file = io.BytesIO()
    torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    write_atomically(out / VOCABULARY, vocabulary.data)
    write_atomically(out / "pytorch_model.bin", file.getbuffer())
    write_atomically(out / HUAWEI_CONFIG, json.dumps(values, indent=2) + "\n")
