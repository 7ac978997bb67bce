"""Where each piece of a model tensor lives in the tensors that an optimizer updates.

Without ZeRO an optimizer sees the model's tensors. Under ZeRO it sees one flat fp32 partition per parameter group,
in which a model tensor may begin, end, or both, or not occur at all. A list of slices says which piece is where. LAMB
needs it to compute one trust ratio per model tensor, checkpoints need it to name what they write: with it neither
knows anything else of ZeRO.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slice:
    """`numel` elements of the model tensor `name` from `offset` on are `owner`'s elements from `start` on."""

    name: str
    """The model's name of the tensor."""
    index: int
    """The tensor's number, the same on every rank."""
    offset: int
    """Into the flattened model tensor."""
    numel: int
    owner: Tensor
    """What the optimizer updates: the model's tensor itself, its fp32 master, or a flat partition of many."""
    start: int
    """Into the flattened owner."""

    def of(self, tensor: Tensor) -> Tensor:
        """(numel,): this slice of a tensor shaped as the owner: the owner itself, its gradient, a moment."""
        return tensor.view(-1).narrow(0, self.start, self.numel)
