"""Make nezha.npz: what Hugging Face's NEZHA computes, for tests on machines without it.

    .venv-hf/bin/python tests/golden/make_golden.py        (transformers 4.57.6, the last with NEZHA)

For each case: config, weights under Hugging Face's names, a batch with padding and two segments, and of
NezhaForPreTraining in evaluation mode and fp32 the final hidden states, both heads' scores, the loss and gradients.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import NezhaConfig, NezhaForPreTraining

SIZES = {"vocab_size": 61, "num_hidden_layers": 2, "max_position_embeddings": 160}
CASES = {
    # Beyond the clip of the Chinese models; within it; an unusual head size, a small clip and the other GELU.
    "beyond": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "lengths": [150, 97]},
    "within": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "lengths": [9, 20, 1]},
    "unusual": {
        "hidden_size": 30,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_relative_position": 5,
        "hidden_act": "gelu_pytorch_tanh",
        "lengths": [33, 12],
    },
}
PREDICTIONS = 6
GRADIENTS = [
    "nezha.embeddings.word_embeddings.weight",
    "nezha.embeddings.token_type_embeddings.weight",
    "nezha.embeddings.LayerNorm.weight",
    "nezha.encoder.layer.0.attention.self.query.weight",
    "nezha.encoder.layer.0.attention.self.key.weight",
    "nezha.encoder.layer.0.attention.self.value.bias",
    "nezha.encoder.layer.1.attention.self.query.bias",
    "nezha.encoder.layer.1.intermediate.dense.weight",
    "nezha.encoder.layer.1.output.LayerNorm.bias",
    "nezha.pooler.dense.weight",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.bias",
    "cls.seq_relationship.weight",
]


def random_model(config: NezhaConfig, seed: int) -> NezhaForPreTraining:
    """Weights ten times as large as fresh ones, biases and norms too, so that every term shows in the result."""
    model = NezhaForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if name.endswith("LayerNorm.weight") else noise)
    return model


def random_batch(lengths: list[int], vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """A batch as nezha_ds has it: padded, with ascending positions and labels, some of them unused."""
    draw = np.random.default_rng(seed)
    size, length = len(lengths), max(lengths)
    is_token = np.arange(length) < np.array(lengths)[:, None]
    positions = np.zeros((size, PREDICTIONS), dtype=np.int64)
    labels = np.full((size, PREDICTIONS), -100)
    for row, limit in enumerate(lengths):
        count = min(limit, PREDICTIONS - row)
        positions[row, :count] = np.sort(draw.choice(limit, size=count, replace=False))
        labels[row, :count] = draw.integers(1, vocab_size, size=count)
    return {
        "input_ids": draw.integers(1, vocab_size, size=(size, length)) * is_token,
        "token_type_ids": ((np.arange(length) >= np.array(lengths)[:, None] // 2) & is_token).astype(np.int64),
        "lengths": np.array(lengths),
        "mlm_positions": positions,
        "mlm_labels": labels,
        "next_sentence_labels": draw.integers(0, 2, size=size),
    }


def run(model: NezhaForPreTraining, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states, scores at the positions, loss and gradients."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    is_token = torch.arange(tensors["input_ids"].shape[1]) < tensors["lengths"][:, None]
    labels = torch.full_like(tensors["input_ids"], -100)
    for row, (positions, wanted) in enumerate(zip(tensors["mlm_positions"], tensors["mlm_labels"], strict=True)):
        used = wanted != -100
        labels[row, positions[used]] = wanted[used]
    output = model(
        input_ids=tensors["input_ids"],
        attention_mask=is_token.long(),
        token_type_ids=tensors["token_type_ids"],
        labels=labels,
        next_sentence_label=tensors["next_sentence_labels"],
        output_hidden_states=True,
    )
    output.loss.backward()
    rows = torch.arange(len(labels))[:, None]
    parameters = dict(model.named_parameters())
    results = {
        # Zero on padding, where states mean nothing.
        "hidden": output.hidden_states[-1] * is_token[..., None],
        "mlm_logits": output.prediction_logits[rows, tensors["mlm_positions"]],
        "nsp_logits": output.seq_relationship_logits,
        "loss": output.loss,
        **{f"gradients/{name}": parameters[name].grad for name in GRADIENTS},
    }
    return {name: tensor.detach().numpy() for name, tensor in results.items()}


def main() -> None:
    """Write nezha.npz beside this file."""
    arrays: dict[str, np.ndarray] = {}
    for seed, (case, values) in enumerate(CASES.items()):
        lengths = values.pop("lengths")
        config = SIZES | values
        model = random_model(NezhaConfig(**config), seed)
        batch = random_batch(lengths, config["vocab_size"], seed)
        arrays[f"{case}/config"] = np.array(json.dumps(config))
        arrays |= {f"{case}/weights/{name}": value.numpy() for name, value in model.state_dict().items()}
        arrays |= {f"{case}/batch/{name}": value for name, value in batch.items()}
        arrays |= {f"{case}/results/{name}": value for name, value in run(model, batch).items()}
    np.savez_compressed(Path(__file__).with_name("nezha.npz"), **arrays)


if __name__ == "__main__":
    main()
