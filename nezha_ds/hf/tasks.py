"""The heads for transformers: pretraining's two, and those of the tasks that a NEZHA is fine-tuned for.

Losses are transformers' own (`loss_function`), so that Trainer counts tokens as it does for its models. B batch, L
length, D hidden, V vocabulary, C classes.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils.generic import can_return_tuple

from nezha_ds.hf.encoder import NezhaConfig, NezhaModel, NezhaPreTrainedModel


class NezhaTransform(nn.Module):
    """What comes before the decoder."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """The same shape."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class NezhaPredictions(nn.Module):
    """Scores of the vocabulary."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.transform = NezhaTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, V)."""
        return self.decoder(self.transform(hidden))


class NezhaHeads(nn.Module):
    """Whichever of pretraining's heads a model has."""

    def __init__(self, config: NezhaConfig, words: bool = True, pairs: bool = True) -> None:
        super().__init__()
        if words:
            self.predictions = NezhaPredictions(config)
        if pairs:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class _WithDecoder(NezhaPreTrainedModel):
    """A decoder tied to the words."""

    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    cls: NezhaHeads

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NezhaPredictions):
            init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another decoder."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias


class NezhaForPreTraining(_WithDecoder):
    """Both heads."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls = NezhaHeads(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **kwargs: Any,
    ) -> BertForPreTrainingOutput:
        """Labels (B, L), -100 where nothing is predicted; next_sentence_label (B,), 0 real, 1 random."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        words = self.cls.predictions(found.last_hidden_state)
        pairs = self.cls.seq_relationship(found.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = F.cross_entropy(words.flatten(0, 1), labels.flatten()) + F.cross_entropy(pairs, next_sentence_label)
        return BertForPreTrainingOutput(loss, words, pairs, found.hidden_states, found.attentions)


class NezhaForMaskedLM(_WithDecoder):
    """The head that fills masks."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.cls = NezhaHeads(config, pairs=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Labels (B, L), -100 where nothing is predicted."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.cls.predictions(found.last_hidden_state)
        loss = (
            None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **_counted(kwargs))
        )
        return MaskedLMOutput(loss, logits, found.hidden_states, found.attentions)


class NezhaForNextSentencePrediction(NezhaPreTrainedModel):
    """The head that tells a real next segment from a random one."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls = NezhaHeads(config, words=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> NextSentencePredictorOutput:
        """Labels (B,): 0 real, 1 random."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.cls.seq_relationship(found.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels.flatten())
        return NextSentencePredictorOutput(loss, logits, found.hidden_states, found.attentions)


class _WithClassifier(NezhaPreTrainedModel):
    """Dropout and one linear layer on the encoder."""

    def __init__(self, config: NezhaConfig, pooled: bool) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)  # a property of id2label
        self.nezha = NezhaModel(config, add_pooling_layer=pooled)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()


class NezhaForSequenceClassification(_WithClassifier):
    """A class, or a number, for a whole sequence."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config, pooled=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Labels (B,) classes, or (B, C) flags or numbers; `config.problem_type` says which."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(found.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **_counted(kwargs))
        return SequenceClassifierOutput(loss, logits, found.hidden_states, found.attentions)


class NezhaForTokenClassification(_WithClassifier):
    """A class for every token."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config, pooled=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Labels (B, L), -100 where no class is asked for."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(found.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **_counted(kwargs))
        return TokenClassifierOutput(loss, logits, found.hidden_states, found.attentions)


class NezhaForMultipleChoice(NezhaPreTrainedModel):
    """Which of several sequences, such as a question with each of its answers."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Inputs with an axis for the choices, (B, C, L) or (B, C, L, D); labels (B,): the right one."""
        given = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        # (B, C, ...) -> (B·C, ...)
        found = self.nezha(*(None if x is None else x.flatten(0, 1) for x in given), **kwargs)
        choices = next(x.shape[1] for x in (input_ids, inputs_embeds) if x is not None)
        # (B·C, 1) -> (B, C)
        logits = self.classifier(self.dropout(found.pooler_output)).view(-1, choices)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss, logits, found.hidden_states, found.attentions)


class NezhaForQuestionAnswering(NezhaPreTrainedModel):
    """Where in the sequence an answer begins and ends."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """start_positions and end_positions (B,): the answer's first and last token."""
        found = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        start, end = self.qa_outputs(found.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions, **_counted(kwargs))
        return QuestionAnsweringModelOutput(loss, start, end, found.hidden_states, found.attentions)


def _classifier_dropout(config: NezhaConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _counted(kwargs: dict[str, Any]) -> dict[str, Any]:
    """How many labels the whole step has, which Trainer passes when it accumulates gradients."""
    return {key: value for key, value in kwargs.items() if key == "num_items_in_batch"}
