"""Objectives teach what they ask: a narrow model on text that counts finds what stands in a span, and which part is
first. From shards to the update of the weights, so labels, boundaries, heads and losses have to agree.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from nezha_ds.data.dataset import open_dataset
from nezha_ds.data.pipeline import Pipeline
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.run import freeze_unused
from tests.data.folders import RANDOM_IDS, SPECIAL, VOCABULARY_SIZE, to_columns, write_folder

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
MEASURED = 20


@pytest.fixture(scope="module")
def counting(tmp_path_factory) -> Path:
    """120 documents of 8 sentences, each of which counts on from 200 in words of 1 to 3 tokens."""
    rng, documents = np.random.default_rng(1), []
    for _ in range(120):
        count, document = 200, []
        for _ in range(8):
            sizes = rng.integers(1, 4, 5).tolist()
            document.append([[*range(count + sum(sizes[:at]), count + sum(sizes[: at + 1]))] for at in range(5)])
            count += sum(sizes)
        documents.append(document)
    folder = tmp_path_factory.mktemp("counting")
    write_folder(folder, [to_columns(documents)])
    return folder


def learned(data: DataSettings, masking: MaskingSettings, objective: ObjectiveSettings, steps: int) -> float:
    """The mean accuracy of the last steps, each on new masks, of the one objective."""
    dataset, _ = open_dataset(data, "train")
    ordered = data.pairing == "sentence-order"
    pipeline = Pipeline(dataset, masking, data.length, 1, SPECIAL, RANDOM_IDS, ordered)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = NezhaForPreTraining(preset("tiny", VOCABULARY_SIZE, **SIZES, **still, **objective.heads), seed=1)
    freeze_unused(model, objective)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    (name,), found = objective.weights, []
    for step in range(steps):
        samples = np.random.default_rng(step).integers(0, len(dataset.plan), 32)
        batch, _ = pipeline.make(samples, np.full(32, step))
        losses = pretraining_losses(model(batch), batch, objective)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        found.append(losses.accuracy[name].item())
    return float(np.mean(found[-MEASURED:]))


@pytest.mark.parametrize("form", ["nezha", "spanbert"])
def test_what_a_span_held_is_learned_from_its_neighbours(counting, form):
    """By chance one of about 80 is right; without the place in the span, one of the few that it holds."""
    data = DataSettings(shards=str(counting), length=48)
    objective = ObjectiveSettings(mlm=0.0, span=1.0, span_form=form)
    assert learned(data, MaskingSettings(method="span"), objective, steps=200) > 0.5


def test_the_order_of_segments_is_learned(counting):
    data = DataSettings(shards=str(counting), length=48, format="segment-pair", pairing="sentence-order")
    assert learned(data, MaskingSettings(), ObjectiveSettings(mlm=0.0, sop=1.0), steps=120) > 0.8
