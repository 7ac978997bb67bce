"""A model folder as one ONNX file, for serving without PyTorch.

    input_ids, token_type_ids, attention_mask    (batch, length), int64; both sizes are free at run time
    last_hidden_state                            (batch, length, hidden)
    logits                                       (batch, length, vocabulary), where scores are asked for

Padding must stand behind the text: the mask is read as a length, as in training. fp32, by torch.export.
Needs the extra `[onnx]`.
"""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from nezha_ds.errors import CheckpointError, LaunchError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.hf import load_folder
from nezha_ds.model.positions import KINDS

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
_LARGEST = 2**31
"""Bytes of one protobuf message; larger models would need a second file."""


class Served(nn.Module):
    """The model as a server calls it."""

    def __init__(self, model: NezhaForPreTraining, scores: bool) -> None:
        super().__init__()
        self.model = model
        self.scores = scores

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """(B, L) three times -> (B, L, D), and (B, L, V) with scores."""
        hidden = self.model.encoder(input_ids, token_type_ids, attention_mask.sum(1))
        if not self.scores:
            return (hidden,)
        everywhere = torch.arange(hidden.shape[1])[None].expand(hidden.shape[0], -1)
        return hidden, self.model.mlm(hidden, everywhere, self.model.encoder.embeddings.words.weight)


def export_onnx(folder: Path, out: Path, scores: bool = False) -> None:
    """Write the model of a folder to `out`.

    CheckpointError when the folder is no model, or one too large for one file; LaunchError when a library is missing.
    """
    model = load_folder(folder)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > _LARGEST:
        raise CheckpointError(
            f"{folder} has {size / 1e9:.1f} GB of weights, an ONNX file holds 2; export a smaller one"
        )
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LaunchError(f"{error.name} is not installed; `pip install 'nezha-ds[onnx]'`") from None
    make_folder(out.parent)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "model.onnx"
        _export(Served(model, scores).eval(), draft)
        write_atomically(out, draft.read_bytes())


def _export(served: Served, path: Path) -> None:
    # Two rows of nine: sizes of 0 and 1 would be taken for constants.
    config = served.model.config
    row = torch.arange(1, 10)[None].expand(2, -1).contiguous() % config.vocab_size
    example = (row, torch.zeros_like(row), torch.ones_like(row))
    longest = config.max_position_embeddings if KINDS[config.positions].bounded else 4096
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=longest)}
    outputs = ["last_hidden_state", "logits"] if served.scores else ["last_hidden_state"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that several inputs share
        program = torch.onnx.export(
            served,
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes=tuple(dict(free) for _ in example),
            input_names=list(INPUTS),
            output_names=outputs,
        )
    assert program is not None
    program.save(str(path))
