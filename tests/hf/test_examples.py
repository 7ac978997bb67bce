"""The examples in docs run, and do what they say."""

import runpy
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_a_sentences_vector_does_not_depend_on_its_neighbours(folder):
    embed = runpy.run_path(str(EXAMPLES / "sentence_embeddings.py"))["embed"]
    sentences = ["一丁七", "一丁七丈三上下不与", "万丈"]
    together = embed(str(folder), sentences)
    assert together.shape == (3, 128)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for sentence, vector in zip(sentences, together, strict=True):
        torch.testing.assert_close(embed(str(folder), [sentence])[0], vector, atol=1e-5, rtol=1e-5)
