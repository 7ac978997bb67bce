"""Sentence embeddings from an exported folder: the mean of the last states over each sentence's own tokens.

    python docs/examples/sentence_embeddings.py build/demo/model 孔明曰：吾有一计。 玄德大喜。 合同自成立时生效。

Prints the cosine between every two sentences. A model fresh from pretraining ranks by topic and style; for search or
deduplication, fine-tune it on pairs first.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import nezha_ds.hf  # noqa: F401 - teaches transformers what a nezha is


def embed(folder: str, sentences: list[str]) -> Tensor:
    """(S, D): one vector of length 1 a sentence."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None].float()
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


if __name__ == "__main__":
    vectors = embed(sys.argv[1], sys.argv[2:])
    for sentence, row in zip(sys.argv[2:], vectors @ vectors.T, strict=True):
        print(" ".join(f"{cosine:+.2f}" for cosine in row.tolist()), sentence)
