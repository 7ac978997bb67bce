"""Weights as others keep them, read without executing anything.

    model.safetensors               one file, or many behind model.safetensors.index.json
    pytorch_model.bin, *.bin, *.pt  read with `weights_only`, which refuses every pickle that is more than tensors
    NAME.ckpt.index                 TensorFlow 1 and 2; needs `pip install tensorflow-cpu`

Names come out in PyTorch's style under whatever prefix the file has; `hf.py` knows what they mean.
"""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nezha_ds.errors import CheckpointError, LaunchError

# TensorFlow's names to PyTorch's, in this order; None is dropped on purpose.
TENSORFLOW: dict[str, str | None] = {
    r"/(adam|lamb)_[mv]$": None,
    r"^(global_step|good_steps|bad_steps|loss_scale|beta[12]_power)$": None,
    r"^cls/predictions/output_bias$": "cls/predictions/bias",
    r"/output_weights$": "/weight",
    r"/output_bias$": "/bias",
    r"_embeddings$": "_embeddings/weight",
    r"/layer_(\d+)/": r"/layer/\1/",
    r"/kernel$": "/weight",
}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the model in a folder, by the name that the file gives it, on the CPU.

    CheckpointError when there is no file of weights, more than one, or one that is damaged or holds more than tensors;
    LaunchError when TensorFlow is needed and missing. Links are followed, as Hugging Face's cache is made of them.
    """
    for pattern, read in _READERS.items():
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(f"{folder} has several files of weights ({names}); keep one in a folder of its own")
        if found:
            return read(found[0])
    raise CheckpointError(
        f"{folder} has no weights; name a folder with model.safetensors, pytorch_model.bin or a TensorFlow checkpoint"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    _refuse_no_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from None


def _torch(path: Path) -> dict[str, Tensor]:
    _refuse_no_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, and nothing else is read from a pickle; save the state_dict alone, "
            "best as safetensors, where you trust the file"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({str(error).partition(chr(10))[0]}); copy it again") from None
    # Training scripts wrap the state dict in one more level.
    for key in ("state_dict", "model", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} is no state dict (names to tensors); save model.state_dict()")
    for name, tensor in loaded.items():
        _refuse_hollow(tensor, f"{path}: {name}")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _refuse_no_file(path: Path) -> None:
    # A pipe would be waited for, a device read for ever.
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; copy the weights themselves there")


def _refuse_hollow(tensor: Tensor, name: str) -> None:
    """A pickle may tell a size that its numbers do not fill: four bytes seen a trillion times."""
    if tensor.layout != torch.strided:
        raise CheckpointError(f"{name} is sparse; save it dense")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{name} has the shape {tuple(tensor.shape)} and fewer numbers than that; save contiguous tensors"
        )


def _many(index: Path) -> dict[str, Tensor]:
    """The files that an index names, together."""
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}); copy it again") from None
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names a file outside its folder: {outside[0]!r}; do not use this model")
    read = _safetensors if ".safetensors" in index.name else _torch
    return {name: tensor for file in names for name, tensor in read(index.parent / file).items()}


def _tensorflow(index: Path) -> dict[str, Tensor]:
    try:
        import tensorflow  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LaunchError(
            f"{index} is a TensorFlow checkpoint, and TensorFlow is not installed; `pip install tensorflow-cpu`"
        ) from None
    try:
        reader = tensorflow.train.load_checkpoint(str(index.with_suffix("")))
        return from_tensorflow({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})
    except (ValueError, OSError, tensorflow.errors.OpError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}); copy the .index and .data files again") from None


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """TensorFlow's variables under PyTorch's names; kernels (in, out) become weights (out, in)."""
    tensors: dict[str, Tensor] = {}
    for variable, values in variables.items():
        name = _torch_name(variable)
        if name is not None:
            turned = values.T if variable.endswith("/kernel") else values
            tensors[name] = torch.from_numpy(np.ascontiguousarray(turned))
    return tensors


def _torch_name(variable: str) -> str | None:
    for pattern, replacement in TENSORFLOW.items():
        if re.search(pattern, variable):
            if replacement is None:
                return None
            variable = re.sub(pattern, replacement, variable)
    return variable.replace("/", ".")


_READERS = {
    "model.safetensors": _safetensors,
    "model.safetensors.index.json": _many,
    "pytorch_model.bin": _torch,
    "pytorch_model.bin.index.json": _many,
    "*.safetensors": _safetensors,
    "*.bin": _torch,
    "*.pt": _torch,
    "*.index": _tensorflow,
}
"""In order of trust: the first pattern that finds something is read."""
