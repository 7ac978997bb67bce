"""Run by transformers' own interpreter: opens our folder, saves one of its own, and says what it computes on both.

.venv-hf/bin/python -m tests.model.oracle FOLDER reads ours and batch.npz there; writes theirs, bert, *.npz, info.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertForMaskedLM, NezhaConfig, NezhaForPreTraining

from tests.golden.make_golden import random_model, run


def main(folder: Path) -> None:
    """Both directions in one process, since starting transformers takes most of the time."""
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
