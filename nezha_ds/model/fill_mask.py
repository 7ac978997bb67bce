"""What an exported model would write in the place of each [MASK]: a first look at what a run has learned."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.errors import DataError
from nezha_ds.model.hf import load_folder
from nezha_ds.text.kinds import AnyTokenizer, open_tokenizer
from nezha_ds.text.vocab import MASK, Vocabulary


class Candidate(NamedTuple):
    """An entry of the vocabulary for a masked place."""

    token: str
    probability: float


def fill_mask(folder: Path, text: str, top: int = 5) -> list[list[Candidate]]:
    """The `top` likeliest tokens, best first, for each [MASK] of the text, in order.

    Several masks are judged at once, each without knowing the others. DataError when there is no [MASK], when the text
    is longer than the model, or when the folder has no vocabulary; CheckpointError when it has no model.
    """
    model = load_folder(folder)
    tokenizer = open_tokenizer(folder)
    if len(tokenizer.vocabulary) != model.config.vocab_size:
        raise DataError(
            f"the vocabulary of {folder} has {len(tokenizer.vocabulary):,} entries and its model "
            f"{model.config.vocab_size:,}; put the vocabulary there that the model came with"
        )
    batch = _query(text, tokenizer, model.config.max_position_embeddings)
    with torch.inference_mode():
        best = model(batch).mlm_logits[0].softmax(dim=-1).topk(min(top, len(tokenizer.vocabulary)))
    return [
        [Candidate(tokenizer.decode([index]), share) for index, share in zip(indices, shares, strict=True)]
        for indices, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _query(text: str, tokenizer: AnyTokenizer, longest: int) -> Batch:
    """A batch of the one text, its masks being the places to predict."""
    vocabulary = tokenizer.vocabulary
    asked = text.replace(MASK, vocabulary.tokens[vocabulary.mask_id])  # byte-level BPE calls it <mask>
    ids = _with_ends(tokenizer.encode_with_special(asked).ids, vocabulary)
    positions = (ids[0] == vocabulary.mask_id).nonzero().T
    if not positions.numel():
        raise DataError(f"the text has no {MASK}; write one where a token is to be guessed, as in 滚滚长江东{MASK}水")
    if ids.shape[1] > longest:
        raise DataError(f"the text has {ids.shape[1]} tokens and the model takes {longest}; shorten the text")
    return Batch(
        input_ids=ids,
        token_type_ids=torch.zeros_like(ids),
        lengths=torch.tensor([ids.shape[1]]),
        mlm_positions=positions,
        mlm_labels=torch.full_like(positions, IGNORE),
        sample_ids=torch.zeros(1, dtype=torch.int64),
    )


def _with_ends(ids: np.ndarray, vocabulary: Vocabulary) -> torch.Tensor:
    """(T,) -> (1, T + 2), int64, between [CLS] and [SEP]."""
    return torch.from_numpy(np.concatenate(([vocabulary.cls_id], ids, [vocabulary.sep_id])).astype(np.int64))[None]
