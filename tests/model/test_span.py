"""Both forms of span prediction against their formulas written out, and which states the loss may teach."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nezha_ds.batch import IGNORE
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.span import OFFSETS
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.model.samples import lively_model, random_batch, small_config, span_batch

FORMS = ["nezha", "spanbert"]


def encoding(distance: int, clip: int, size: int) -> list[float]:
    """a(distance) of FACTS.md: the row of the clipped and shifted distance."""
    row = max(-clip, min(clip, distance)) + clip
    angles = [row * 10000 ** (-2 * k / size) for k in range(size // 2)]
    return [turn(angle) for angle in angles for turn in (math.sin, math.cos)]


def slow_scores(model: NezhaForPreTraining, hidden: torch.Tensor, left: int, at: int, right: int) -> torch.Tensor:
    """The formula for one target of one row, (L, D) -> (V,), in fp64."""
    config, weights = model.config, {name: value.double() for name, value in model.span.state_dict().items()}
    if config.span_form == "nezha":
        clip, size = config.max_relative_position, config.head_size
        place = torch.tensor(encoding(at - left, clip, size) + encoding(at - right, clip, size)).double()
    else:
        place = weights["place.offsets.weight"][min(at - left - 1, OFFSETS - 1)]
    state = torch.cat([hidden[left].double(), hidden[right].double(), place])
    for layer in ("layers.0", "layers.1"):
        state = F.gelu(weights[f"{layer}.dense.weight"] @ state + weights[f"{layer}.dense.bias"])
        norm = (weights[f"{layer}.norm.weight"], weights[f"{layer}.norm.bias"])
        state = F.layer_norm(state, state.shape, *norm, eps=config.layer_norm_eps)
    return model.encoder.embeddings.words.weight.double() @ state + weights["bias"]


@pytest.mark.parametrize("clip", [64, 2])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_formulas(form, clip):
    model = lively_model(small_config(span_form=form, max_relative_position=clip))
    batch = span_batch()
    with torch.no_grad():
        hidden = model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
        output = model(batch)
        predicted = (batch.mlm_labels != IGNORE).nonzero().tolist()
        for row, place in predicted:
            (left, right), at = batch.span_boundaries[row, place].tolist(), int(batch.mlm_positions[row, place])
            expected = slow_scores(model, hidden[row], left, at, right)
            torch.testing.assert_close(output.span_logits[row, place].double(), expected, atol=2e-5, rtol=1e-5)
    assert len(predicted) == 6
    assert output.span_logits.shape == (3, 6, 71)


def test_the_decoder_sees_the_words_that_the_input_sees():
    model, batch = lively_model(small_config(span_form="nezha")), span_batch()
    batch.input_ids[batch.input_ids == 70] = 1
    before = model(batch).span_logits
    with torch.no_grad():
        model.encoder.embeddings.words.weight[70] += 1
    changed = (model(batch).span_logits != before).flatten(0, 1).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [70]


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_teaches_the_states_beside_a_span_and_no_others(form):
    """Above all not those inside: then the masked token itself could tell, and nothing would be learned of spans."""
    model, batch = lively_model(small_config(span_form=form)), span_batch()
    kept = []
    model.encoder.register_forward_hook(lambda module, inputs, hidden: (hidden.retain_grad(), kept.append(hidden))[0])
    objective = ObjectiveSettings(mlm=0.0, span=1.0)
    pretraining_losses(model(batch), batch, objective).total.backward()
    touched = kept[0].grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[0, 2], [0, 6], [0, 8], [0, 10], [1, 0], [1, 3]]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.span.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_a_long_span_is_clipped_and_not_out_of_range(form):
    """Whole rows may be masked where the rate is high: 62 tokens in one span, with K = 8 and 20 offsets."""
    model = lively_model(small_config(span_form=form, max_relative_position=8))
    batch = random_batch([64], predictions=62)
    positions = torch.arange(1, 63)[None]
    boundaries = torch.tensor([0, 63]).expand(1, 62, 2)
    batch = replace(batch, mlm_positions=positions, span_boundaries=boundaries)
    scores = model(batch).span_logits[0]
    assert torch.isfinite(scores).all()
    far = {"nezha": slice(8, 54), "spanbert": slice(19, None)}[form]
    torch.testing.assert_close(scores[far], scores[far][:1].expand_as(scores[far]))
    assert (scores[0] - scores[1]).abs().max() > 0.01


def test_there_is_a_head_where_the_config_says_so_and_scores_where_there_are_boundaries():
    plain, with_head = NezhaForPreTraining(small_config()), NezhaForPreTraining(small_config(span_form="spanbert"))
    assert plain(span_batch()).span_logits is None
    assert with_head(random_batch([9, 5])).span_logits is None
    extra = {name for name, _ in with_head.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert extra and all(name.startswith("span.") for name in extra)
    # The head is drawn last: what both have begins alike.
    shared = dict(with_head.named_parameters())
    assert all(torch.equal(parameter, shared[name]) for name, parameter in plain.named_parameters())


def test_half_precision_stays_half():
    model = lively_model(small_config(span_form="nezha")).bfloat16()
    # As DeepSpeed casts: weights, not buffers.
    model.span.place.table = model.span.place.table.float()
    model.encoder.positions.weight = model.encoder.positions.weight.float()
    assert model(span_batch()).span_logits.dtype == torch.bfloat16
