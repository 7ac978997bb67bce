"""What a user would take instead of ours, a module for each; they run in .venv-bench.

mosaicml-streaming, timm and transformers import torchvision, for images that nothing here has. PyPI's wheel of it is
built for a GPU's torch; beside a CPU's its operators do not load, and its import ends where it registers shapes for two
of them. Declared here, they do no harm.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
