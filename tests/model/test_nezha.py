import pytest
import torch

from nezha_ds.errors import DataError
from nezha_ds.model.config import preset
from nezha_ds.model.heads import NezhaForPreTraining
from tests.model.samples import lively_model, random_batch, small_config


@pytest.mark.parametrize(
    ("name", "encoder", "with_heads"), [("base", 101_874_432, 102_489_226), ("large", 324_998_144, 326_072_970)]
)
def test_parameters_are_as_many_as_published(name, encoder, with_heads):
    with torch.device("meta"):
        model = NezhaForPreTraining(preset(name))
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in model.parameters()) == with_heads


def test_fresh_weights_follow_the_seed_alone():
    torch.manual_seed(1)
    first = NezhaForPreTraining(small_config(), seed=3).state_dict()
    torch.manual_seed(2)
    second = NezhaForPreTraining(small_config(), seed=3).state_dict()
    other = NezhaForPreTraining(small_config(), seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() > 1)


def test_fresh_weights_have_berts_distribution():
    config = small_config(hidden_size=256, initializer_range=0.03)
    for name, tensor in NezhaForPreTraining(config).state_dict().items():
        if tensor.dim() > 1:
            rows = tensor[1:] if "words" in name else tensor
            assert rows.mean().item() == pytest.approx(0, abs=5 * 0.03 / rows.numel() ** 0.5)
            assert rows.std().item() == pytest.approx(0.03, rel=5 / (2 * rows.numel()) ** 0.5)
        else:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("norm.weight"))))
    assert NezhaForPreTraining(config).encoder.embeddings.words.weight[0].count_nonzero() == 0


def test_padding_changes_nothing():
    model, batch = lively_model(small_config()), random_batch([40, 13])
    whole = model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)
    alone = model.encoder(batch.input_ids[1:, :13], batch.token_type_ids[1:, :13], batch.lengths[1:])
    torch.testing.assert_close(whole[1:, :13], alone, atol=1e-5, rtol=1e-5)
    other_ids = batch.input_ids.clone()
    other_ids[1, 13:] = 7
    other = model.encoder(other_ids, batch.token_type_ids, batch.lengths)
    assert torch.equal(whole[1, :13], other[1, :13])


def test_order_is_seen_up_to_the_clip_and_no_further():
    model = lively_model(small_config(num_hidden_layers=1, max_relative_position=4))
    ids = torch.randint(1, 71, (1, 20), generator=torch.Generator().manual_seed(0))
    swapped_far, swapped_near = ids.clone(), ids.clone()
    swapped_far[0, [10, 15]] = ids[0, [15, 10]]
    swapped_near[0, [2, 3]] = ids[0, [3, 2]]
    # The state of the first token, through one layer.
    first, far, near = (
        model.encoder(x, torch.zeros_like(x), torch.tensor([20]))[0, 0] for x in (ids, swapped_far, swapped_near)
    )
    torch.testing.assert_close(first, far, atol=1e-6, rtol=1e-6)
    assert (first - near).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_computes_in_its_dtype_forward_and_backward(dtype):
    model, batch = lively_model(small_config()), random_batch([40, 13])
    exact = model(batch).mlm_logits
    model.to(dtype).train()
    logits = model(batch).mlm_logits
    logits.float().logsumexp(-1).sum().backward()
    assert logits.dtype == dtype
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    logits = model.eval()(batch).mlm_logits
    assert (logits.float() - exact).norm() < (0.04 if dtype == torch.bfloat16 else 0.01) * exact.norm()


def test_dropout_is_drawn_from_torchs_generator_while_training_only():
    model, batch = lively_model(small_config()), random_batch([12, 8])
    assert torch.equal(model(batch).mlm_logits, model(batch).mlm_logits)
    model.train()
    torch.manual_seed(5)
    first, second = model(batch).mlm_logits, model(batch).mlm_logits
    torch.manual_seed(5)
    assert torch.equal(first, model(batch).mlm_logits)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"input_ids": torch.tensor([[3.0, 4.0]])},
            "input_ids are of torch.float32, and ids are of torch.int64; convert",
        ),
        ({"token_type_ids": torch.zeros(1, 2, dtype=torch.int32)}, "token_type_ids are of torch.int32, and ids are"),
        (
            {"input_ids": torch.tensor([[3, 71]])},
            "input_ids reach from 3 to 71, and the model has rows for 0 to 70; is it",
        ),
        ({"input_ids": torch.tensor([[-1, 4]])}, "input_ids reach from -1 to 4, and the model has rows for 0 to 70"),
        (
            {"token_type_ids": torch.tensor([[0, 2]])},
            "token_type_ids reach from 0 to 2, and the model has rows for 0 to 1",
        ),
    ],
)
def test_what_are_no_ids_is_told(given, message):
    ids = {"input_ids": torch.tensor([[3, 4]]), "token_type_ids": torch.tensor([[0, 1]]), "lengths": torch.tensor([2])}
    with pytest.raises(DataError) as caught:
        lively_model(small_config()).encoder(**(ids | given))
    assert str(caught.value).startswith(message)


def test_every_weight_takes_part():
    model, batch = lively_model(small_config()), random_batch([12, 8])
    output = model(batch)
    (output.mlm_logits.logsumexp(-1).sum() + output.nsp_logits[:, 0].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_by_name_differs_in_speed_only():
    batch = random_batch([40, 13])
    table, reference = (lively_model(small_config(attention=name))(batch) for name in ("table", "reference"))
    torch.testing.assert_close(table.mlm_logits, reference.mlm_logits, atol=1e-5, rtol=1e-5)
