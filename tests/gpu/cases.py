"""What is measured on a GPU, in the order of its worth: whatever is cut off at the end costs least.

A group is measured by one process, its sides in turns: `step` times whole training steps, `limit` looks for the
largest micro-batch. A side is a model: ours with one of its attention bodies, or what it is compared with. `tiles`
times the Triton kernels alone, a side being one kernel with one choice of blocks.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["step", "limit", "tiles"]

SIDES: dict[str, str] = {
    "triton": "NEZHA, attention = triton",
    "table": "NEZHA, attention = table",
    "unclipped": "NEZHA, positions = functional-relative-unclipped, attention = sdpa",
    "bert": "the same code as a BERT: positions = learned-absolute, attention = sdpa",
    "hf-nezha": "transformers' NezhaForPreTraining, eager (the last is in 4.57.6)",
    "hf-bert": "transformers' BertForPreTraining, attn_implementation = sdpa",
}
"""By name: what it is."""

TILES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "FORWARD": ((128, 32, 8, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 32, 8, 2)),
    "BACKWARD_QUERIES": ((64, 32, 4, 2), (64, 64, 4, 2), (128, 32, 8, 2), (64, 32, 8, 2), (64, 64, 8, 2)),
    "BACKWARD_KEYS": ((32, 64, 4, 2), (64, 64, 4, 2), (32, 128, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2)),
}
"""Choices of queries, keys, warps and stages for heads of 64, by the table in clipped.py; the one in use is first."""

# Samples of a step, 2 where nothing is said: 32k tokens for base and 16k for large, which make the update a small part.
BATCHES: dict[tuple[str, int], int] = {
    ("base", 128): 256,
    ("base", 512): 64,
    ("large", 128): 128,
    ("large", 512): 32,
}
LONGEST = 8192
"""Samples beyond which no micro-batch is looked for."""

Key = tuple[str, str, int, str, bool, str]
"""kind, size, length, dtype, compiled, side: what a row is of."""


@dataclass(frozen=True)
class Group:
    """One size, length and precision, and the sides that take turns in it."""

    kind: Kind
    size: str
    """A preset of the model."""
    length: int
    dtype: Literal["bf16", "fp16", "fp32"]
    sides: tuple[str, ...]
    compiled: bool = False
    """Whether each block of the model goes through torch.compile."""
    seconds: float = 100.0
    """After which the process is ended."""
    most: int = LONGEST
    rounds: int = 5
    warm_up: int = 3

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return BATCHES.get((self.size, self.length), 2)

    def key(self, side: str) -> Key:
        """What a row of this side is of."""
        return self.kind, self.size, self.length, self.dtype, self.compiled, side

    def row(self, side: str, **values: Any) -> dict[str, Any]:
        """A row of this side."""
        return dict(zip(("kind", "size", "length", "dtype", "compiled", "side"), self.key(side), strict=True)) | values

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Group":
        """A group as the other process has it."""
        return Group(**values | {"sides": tuple(values["sides"])})


def groups() -> list[Group]:
    """All of them, the most valuable first."""
    main = ("triton", "bert", "hf-nezha", "table", "unclipped")
    sizes = (("base", 512), ("base", 128), ("large", 512), ("large", 128))

    def steps(size: str, length: int, dtype: Any) -> Group:
        return Group("step", size, length, dtype, (*main, "hf-bert") if size == "base" else main)

    def compiled(size: str, length: int, dtype: Any) -> Group:
        return Group("step", size, length, dtype, ("triton", "bert", "unclipped"), compiled=True, seconds=150.0)

    def limits(size: str, length: int, dtype: Any) -> Group:
        return Group("limit", size, length, dtype, ("triton", "bert", "hf-nezha"))

    return [
        steps("base", 512, "bf16"),
        compiled("base", 512, "bf16"),
        Group("tiles", "base", 512, "bf16", tile_sides()),
        *(steps(*each, "bf16") for each in sizes[1:]),
        limits("base", 512, "bf16"),
        *(compiled(*each, "bf16") for each in sizes[1:]),
        *(steps(*each, "fp16") for each in sizes),
        *(limits(*each, "bf16") for each in sizes[1:]),
        *(compiled(*each, "fp16") for each in sizes),
        *(limits(*each, "fp16") for each in sizes),
    ]


def tile_sides() -> tuple[str, ...]:
    """The table's name and the choice, as one word each."""
    return tuple(f"{name} {'x'.join(map(str, tiles))}" for name, choices in TILES.items() for tiles in choices)


def quick_groups(compiled: bool = False) -> list[Group]:
    """A dry run on any device in a few seconds: every kind and every side."""
    one = Group("step", "tiny", 32, "bf16", tuple(SIDES), compiled, 3000.0, rounds=1, warm_up=0)
    limit = Group("limit", "tiny", 32, "bf16", ("triton", "table", "bert", "hf-nezha"), seconds=3000.0, most=4)
    return [one, limit, Group("tiles", "tiny", 32, "bf16", tile_sides()[:1], seconds=3000.0)]
