"""Checkpoints without DeepSpeed: tensors cut among pretended ranks at any offsets, written by the code that trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from nezha_ds.files import sha256_of
from nezha_ds.model.config import NezhaConfig, preset
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.optim.slices import Slice
from nezha_ds.text.tokenizer import tokenizer_files
from nezha_ds.text.vocab import load_vocabulary
from nezha_ds.train.checkpoint import MANIFEST, Contents, FileEntry, State
from nezha_ds.train.snapshot import Entries, Snapshot, commit, copy_moments, write
from nezha_ds.world import World

ALONE = World()
KEYS = ("exp_avg", "exp_avg_sq")
CONFIG = preset(
    "tiny", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=64
)
"""Of BERT-Chinese's vocabulary, so that an export can be asked for tokens."""


@dataclass
class PretendedEngine:
    """What a checkpoint needs of an engine: this rank's slices and their moments, and a model to put weights into."""

    slices: list[Slice]
    world: World
    values: dict[str, dict[str, Tensor]]
    """Moment and tensor name -> the whole moment, flat; the rank sees its slices of it only."""
    partitioned: bool = True
    module: NezhaForPreTraining | None = None

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        assert self.module is not None
        for name, parameter in self.module.named_parameters():
            parameter.data.copy_(weights[name])

    def make_moments(self) -> None:
        pass

    def restore_counters(self, counters: object, step: int) -> None:
        pass

    def moments(self, piece: Slice) -> dict[str, Tensor]:
        return {key: self.values[key][piece.name].narrow(0, piece.offset, piece.numel) for key in KEYS}


def cut(sizes: dict[str, int], edges: Sequence[int]) -> list[list[Slice]]:
    """Tensors laid end to end and cut at `edges`, as ZeRO does: the slices of each rank, in order."""
    bounds = [0, *sorted(edges), sum(sizes.values())]
    ranks = []
    for low, high in pairwise(bounds):
        begin, slices = 0, []
        for index, (name, size) in enumerate(sizes.items()):
            first, last = max(low, begin), min(high, begin + size)
            if first < last:
                owner = torch.zeros(high - low)
                slices.append(Slice(name, index, first - begin, last - first, owner, first - low))
            begin += size
        ranks.append(slices)
    return ranks


def write_moments(folder: Path, ranks: list[list[Slice]], values: dict[str, dict[str, Tensor]]) -> None:
    """Every rank writes its moments, and the manifest names them."""
    entries: Entries = {}
    for number, slices in enumerate(ranks):
        engine = PretendedEngine(slices, World(rank=number, world_size=len(ranks)), values)
        moments = copy_moments(engine)  # type: ignore[arg-type]
        entries |= write(Snapshot(state(0), {}, None, moments), folder)
    (folder / MANIFEST).write_text(Contents(files=entries).model_dump_json())


def state(step: int, config: NezhaConfig = CONFIG) -> State:
    return State(
        step=step, samples=step * 16, seed=1, fingerprint="f" * 64, model=config, counters={}, recipe={"recipe": {}}
    )


def engine(seed: int, world: World = ALONE) -> PretendedEngine:
    """A model and moments that are its weights and their squares, on ranks without ZeRO."""
    model = NezhaForPreTraining(CONFIG, seed=seed)
    named = enumerate(model.named_parameters())
    slices = [Slice(name, index, 0, weight.numel(), weight, 0) for index, (name, weight) in named]
    flat = {name: weight.detach().clone().view(-1) for name, weight in model.named_parameters()}
    values = {"exp_avg": flat, "exp_avg_sq": {name: weight**2 for name, weight in flat.items()}}
    return PretendedEngine(slices, world, values, partitioned=False, module=model)


def write_checkpoint(root: Path, step: int) -> Path:
    """A whole checkpoint of one rank without ZeRO, its weights drawn from the step."""
    model = NezhaForPreTraining(CONFIG, seed=step)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    values = {key: {name: torch.rand(size) for name, size in sizes.items()} for key in KEYS}
    engine = PretendedEngine(cut(sizes, [])[0], World(), values, partitioned=False)
    vocabulary = load_vocabulary()
    files = {"vocab.txt": vocabulary.data} | tokenizer_files(vocabulary, True, CONFIG.max_position_embeddings)
    temporary, final = root / f".step-{step:08}.tmp", root / f"step-{step:08}"
    snapshot = Snapshot(state(step), files, weights, copy_moments(engine))  # type: ignore[arg-type]
    temporary.mkdir(parents=True)
    commit(temporary, final, write(snapshot, temporary))
    return final


def sign(folder: Path) -> None:
    """Write the manifest of whatever lies in the folder, as whoever made it could."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    entries = {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths}
    (folder / MANIFEST).write_text(Contents(files=entries).model_dump_json())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
