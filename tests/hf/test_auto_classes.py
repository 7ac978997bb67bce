"""Today's transformers opens our folders, computes what we compute, fine-tunes, and saves folders that we open."""

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

import nezha_ds.hf
from nezha_ds.errors import CheckpointError
from nezha_ds.model.fill_mask import fill_mask
from nezha_ds.model.hf import load_folder, state_dict_to_hf
from nezha_ds.model.relative import relative_rows
from tests.hf.conftest import CHARACTERS
from tests.model.samples import random_batch

LENGTHS = [150, 90, 3]
LOADS = [
    (AutoModel, set()),
    (AutoModelForPreTraining, set()),
    (AutoModelForMaskedLM, set()),
    (AutoModelForNextSentencePrediction, set()),
    (AutoModelForSequenceClassification, {"classifier.weight", "classifier.bias"}),
    (AutoModelForTokenClassification, {"classifier.weight", "classifier.bias"}),
    (AutoModelForMultipleChoice, {"classifier.weight", "classifier.bias"}),
    (AutoModelForQuestionAnswering, {"qa_outputs.weight", "qa_outputs.bias"}),
]


@pytest.fixture(scope="module")
def batch():
    batch = random_batch(LENGTHS)
    mask = (torch.arange(max(LENGTHS)) < batch.lengths[:, None]).long()
    inputs = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids, "attention_mask": mask}
    return batch, inputs


@pytest.mark.parametrize(("auto", "fresh"), LOADS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_auto_class_opens_the_folder_and_lacks_only_its_own_head(folder, auto, fresh):
    opened, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(opened).__name__.replace("Nezha", "AutoModel", 1) in (auto.__name__, "AutoModelModel")
    assert set(info["missing_keys"]) == fresh
    assert not info["mismatched_keys"]


def test_it_computes_what_we_compute(folder, model, batch):
    ours, inputs = batch
    opened = AutoModelForPreTraining.from_pretrained(folder).eval()
    expected = model(ours)
    found = opened(**inputs)
    rows = torch.arange(len(LENGTHS))[:, None]
    torch.testing.assert_close(found.prediction_logits[rows, ours.mlm_positions], expected.mlm_logits)
    torch.testing.assert_close(found.seq_relationship_logits, expected.nsp_logits)


def test_states_and_probabilities_are_the_layers_own(folder, model, batch):
    ours, inputs = batch
    opened = AutoModel.from_pretrained(folder).eval()
    found = opened(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    torch.testing.assert_close(found.hidden_states[0], model.encoder.embeddings(ours.input_ids, ours.token_type_ids))
    # The equation, for the first layer.
    attention = model.encoder.blocks[0].attention
    query, key = (
        part(found.hidden_states[0]).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for part in (attention.query, attention.key)
    )
    cube = opened.encoder.relative_positions.weight[relative_rows(max(LENGTHS), 64)]
    scores = (query @ key.transpose(2, 3) + torch.einsum("bnih,ijh->bnij", query, cube)) * attention.head_size**-0.5
    seen = inputs["attention_mask"][:, None, None].bool()
    expected = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    torch.testing.assert_close(found.attentions[0], expected)


def test_words_may_come_as_vectors_and_masks_as_squares(folder, batch):
    _, inputs = batch
    opened = AutoModel.from_pretrained(folder).eval()
    expected = opened(**inputs).last_hidden_state
    words = opened.get_input_embeddings()(inputs["input_ids"])
    square = inputs["attention_mask"][:, None].expand(-1, max(LENGTHS), -1)
    found = opened(inputs_embeds=words, token_type_ids=inputs["token_type_ids"], attention_mask=square)
    torch.testing.assert_close(found.last_hidden_state, expected)
    with pytest.raises(ValueError, match="not both"):
        opened(**inputs, inputs_embeds=words)


def test_what_it_saves_is_our_folder_again(folder, model, tmp_path):
    AutoModelForPreTraining.from_pretrained(folder).save_pretrained(tmp_path)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == state_dict_to_hf(model).keys()
    again = load_folder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert again.config == load_folder(folder).config


def test_a_fresh_model_has_its_table_and_small_weights(folder):
    fresh = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder))
    opened = AutoModelForMaskedLM.from_pretrained(folder)
    table = opened.nezha.encoder.relative_positions.weight
    assert torch.equal(table, fresh.nezha.encoder.relative_positions.weight)
    assert float(table[1, 0]) == pytest.approx(0.8414710, abs=1e-6)
    assert fresh.nezha.encoder.layer[0].intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_pipeline_fills_masks_as_we_do(folder):
    text = "".join(CHARACTERS[:5]) + "[MASK]" + "".join(CHARACTERS[9:12])
    candidates = pipeline("fill-mask", str(folder), top_k=5)(text)
    (ours,) = fill_mask(folder, text, 5)
    assert [one["token_str"] for one in candidates] == [one.token for one in ours]
    assert [one["score"] for one in candidates] == pytest.approx([one.probability for one in ours], abs=1e-5)


def test_other_words_can_be_added(folder):
    opened = AutoModelForMaskedLM.from_pretrained(folder)
    opened.resize_token_embeddings(80)
    assert opened(torch.tensor([[2, 75, 3]])).logits.shape == (1, 3, 80)
    assert opened.cls.predictions.decoder.weight is opened.nezha.embeddings.word_embeddings.weight


@pytest.mark.parametrize(
    ("auto", "labels"),
    [
        (AutoModelForMaskedLM, {"labels": torch.tensor([[-100, 7, -100]])}),
        (AutoModelForPreTraining, {"labels": torch.tensor([[7, 7, 7]]), "next_sentence_label": torch.tensor([1])}),
        (AutoModelForNextSentencePrediction, {"labels": torch.tensor([1])}),
        (AutoModelForSequenceClassification, {"labels": torch.tensor([1])}),
        (AutoModelForTokenClassification, {"labels": torch.tensor([[0, 1, -100]])}),
        (AutoModelForQuestionAnswering, {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_loss_has_gradients(folder, auto, labels):
    opened = auto.from_pretrained(folder)
    loss = opened(torch.tensor([[2, 9, 3]]), **labels).loss
    loss.backward()
    assert loss.item() > 0
    assert opened.nezha.embeddings.word_embeddings.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_fine_tunes_it(folder, tmp_path, checkpointing):
    """Which of two characters a text has: some steps suffice to know it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        CHARACTERS[number % 40] * 3 + CHARACTERS[60 + number % 2] + CHARACTERS[number % 30] for number in range(64)
    ]
    rows = [tokenizer(text) | {"labels": number % 2} for number, text in enumerate(texts)]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        logging_steps=10,
        gradient_checkpointing=checkpointing,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    trainer.save_model(tmp_path / "tuned")
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").eval()
    with torch.no_grad():
        right = [tuned(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in texts]
    assert sum(one == number % 2 for number, one in enumerate(right)) >= 60


def test_of_several_choices_each_is_judged_as_if_alone(folder):
    opened = AutoModelForMultipleChoice.from_pretrained(folder).eval()
    ids = torch.tensor([[[2, 9, 3], [2, 11, 3]], [[2, 9, 12], [2, 40, 3]]])
    found = opened(ids, attention_mask=(ids != 12).long(), labels=torch.tensor([1, 0]))
    assert found.logits.shape == (2, 2)
    alone = opened(ids[1:, :1], attention_mask=(ids != 12)[1:, :1].long())
    torch.testing.assert_close(alone.logits[0, 0], found.logits[1, 0])
    torch.testing.assert_close(found.loss, -found.logits.log_softmax(1)[[0, 1], [1, 0]].mean())
    found.loss.backward()
    words = opened.get_input_embeddings()(ids)
    torch.testing.assert_close(opened(inputs_embeds=words, attention_mask=(ids != 12).long()).logits, found.logits)


def test_probabilities_that_are_handed_out_are_those_in_the_graph(folder):
    opened = AutoModel.from_pretrained(folder).eval()
    found = opened(torch.tensor([[2, 9, 3]]), output_attentions=True)
    (slope,) = torch.autograd.grad(found.last_hidden_state.square().sum(), found.attentions[0])
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.tensor([[2, 71, 3]])}, "from 2 to 71, outside a vocabulary of 71; use the tokenizer"),
        ({"input_ids": torch.tensor([[2, -1, 3]])}, "from -1 to 3, outside"),
        ({"input_ids": torch.tensor([[2.0, 9.0]])}, r"input_ids are torch\.float32, not whole numbers"),
        ({"input_ids": torch.tensor([[2, 9]]), "position_ids": torch.tensor([[1, 0]])}, "takes no position_ids"),
        ({"input_ids": torch.tensor([[2, 9]]), "head_mask": torch.zeros(4)}, "takes no head_mask"),
    ],
    ids=["above", "below", "floats", "positions", "heads"],
)
def test_what_it_cannot_take_is_named(folder, arguments, message):
    with pytest.raises((ValueError, IndexError), match=message):
        AutoModelForMaskedLM.from_pretrained(folder)(**arguments)


def test_it_is_no_decoder(folder):
    config = AutoConfig.from_pretrained(folder)
    config.is_decoder = True
    with pytest.raises(ValueError, match="NEZHA is an encoder"):
        AutoModel.from_config(config)


def test_weights_that_are_no_numbers_are_named(folder, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.nezha.encoder.layer[1].output.dense.bias[:2] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.bias has 2 numbers that are NaN or infinite"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_it_says_what_it_exports():
    assert {name for name in nezha_ds.hf.__all__ if "For" in name} == {
        auto.__name__.replace("AutoModel", "Nezha") for auto, _ in LOADS if auto is not AutoModel
    }
