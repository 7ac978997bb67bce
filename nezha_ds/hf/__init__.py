"""NEZHA in today's transformers, which left it out after 4.57: import this, and every Auto class knows the folders.

    import nezha_ds.hf
    from transformers import AutoModelForSequenceClassification, pipeline

    pipeline("fill-mask", "build/demo/model")("话说天下大[MASK]")
    AutoModelForSequenceClassification.from_pretrained("build/demo/model", num_labels=3)

Folders go to and fro between this, transformers 4.x and `nezha-ds export` without a key lost. A model that no version 4
can compute, with other positions or Pre-LN, is of the type `nezha_ds`; one with BERT's positions is a BERT and needs
nothing from here. Needs `nezha-ds[hf]`.
"""

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from nezha_ds.hf.encoder import NezhaConfig, NezhaModel
from nezha_ds.hf.tasks import (
    NezhaForMaskedLM,
    NezhaForMultipleChoice,
    NezhaForNextSentencePrediction,
    NezhaForPreTraining,
    NezhaForQuestionAnswering,
    NezhaForSequenceClassification,
    NezhaForTokenClassification,
)
from nezha_ds.model.hf import VARIANT

__all__ = [
    "NezhaConfig",
    "NezhaForMaskedLM",
    "NezhaForMultipleChoice",
    "NezhaForNextSentencePrediction",
    "NezhaForPreTraining",
    "NezhaForQuestionAnswering",
    "NezhaForSequenceClassification",
    "NezhaForTokenClassification",
    "NezhaModel",
]

_MODELS = {
    AutoModel: NezhaModel,
    AutoModelForPreTraining: NezhaForPreTraining,
    AutoModelForMaskedLM: NezhaForMaskedLM,
    AutoModelForNextSentencePrediction: NezhaForNextSentencePrediction,
    AutoModelForSequenceClassification: NezhaForSequenceClassification,
    AutoModelForTokenClassification: NezhaForTokenClassification,
    AutoModelForMultipleChoice: NezhaForMultipleChoice,
    AutoModelForQuestionAnswering: NezhaForQuestionAnswering,
}

AutoConfig.register("nezha", NezhaConfig)
CONFIG_MAPPING.register(VARIANT, NezhaConfig)  # AutoConfig would want another class for another name
for auto, model in _MODELS.items():
    auto.register(NezhaConfig, model)
