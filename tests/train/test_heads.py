"""A head that an objective brings along is trained, saved, resumed and exported like the rest of the model."""

import shutil

import pytest
import torch

from nezha_ds.model.hf import load_folder
from nezha_ds.train.export import export
from tests.helpers import runs


@pytest.mark.ranks
@pytest.mark.usefixtures("warm")
def test_the_span_head_goes_on_where_it_was_and_into_the_export(tmp_path, embedded):
    """Spans alone under ZeRO-1: BERT's heads get no gradient and must stay as they were drawn."""
    settings = ("masking.method=span", "objective.mlm=0.0", "objective.span=1.0", "objective.span_form=spanbert")
    run = runs.make(tmp_path, embedded, *settings, "train.eval_samples=0")
    run.finish()
    expected, losses = run.tensors(12), run.losses()
    shutil.rmtree(run.checkpoint(12))
    assert "going on from step-00000008" in run.finish()
    assert run.tensors(12) == expected
    assert run.losses() == losses
    early, late = load_folder(run.checkpoint(4)), load_folder(run.checkpoint(12))
    export(run.folder, tmp_path / "model")
    exported = dict(load_folder(tmp_path / "model").named_parameters())
    before = dict(early.named_parameters())
    for name, parameter in late.named_parameters():
        assert torch.equal(parameter, exported[name])
        untrained = name.startswith(("mlm.", "nsp.", "encoder.pooler."))
        assert torch.equal(parameter, before[name]) == untrained, name
