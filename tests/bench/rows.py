"""The rows: what is measured, what both sides do, and what the numbers mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import material

PLACES = 1 << 17
"""Places (B x L) of a batch where reading is measured; both sides get the same."""
MICRO_BATCH = 32
LAYERS = 4
SIZES = {128: 16, 512: 4}
"""Samples of a step's batch, by length."""


@dataclass(frozen=True)
class Row:
    """One comparison: two modules with a function `side`, called with the same options unless said otherwise."""

    name: str
    unit: str
    rival: str
    note: str
    ours: str
    theirs: str
    options: Mapping[str, Any] = field(default_factory=dict)
    their_options: Mapping[str, Any] | None = None
    scale: float = 1.0
    """Units in one unit of what the sides count."""
    threads: int = 1
    material: tuple[Callable[[Path], None], ...] = ()
    """What must be made first, in order. Where there is any, both sides also get its `folder`."""
    memory: str = ""
    """The name of the row for the memory that the same runs take, if it is wanted."""
    beside_ourselves: bool = False
    """Whether the other side runs in our own environment."""


def _prepare() -> list[Row]:
    return [
        Row(
            "prepare",
            "MB/s",
            "jieba + BertTokenizerFast + chinese_ref",
            "UTF-8 text to finished, synced and hashed shards in one process (31 MB, the shipped texts three times); "
            "beside words, ids and positions in words of every eighth document, written without sync (1.3 MB)",
            ours="ours.prepare",
            theirs="rivals.prepare",
            options={"copies": 3, "workers": 1},
            material=(material.text,),
        ),
        Row(
            "prepare-two",
            "MB/s",
            "one process of ours",
            "two processes beside one, their start included (82 MB); both sides are ours",
            ours="ours.prepare",
            theirs="ours.prepare",
            options={"copies": 8, "workers": 2},
            their_options={"copies": 8, "workers": 1},
            material=(material.text,),
            beside_ourselves=True,
        ),
    ]


def _read() -> list[Row]:
    rivals = {
        "litdata": "blocks of a flat stream of ids, mapped, no words, no padding",
        "streaming": "padded rows of ids, no words",
    }
    return [
        Row(
            f"read-{name}-{'shuffled' if shuffled else 'sequential'}",
            "M tokens/s",
            {"litdata": "litdata", "streaming": "mosaicml-streaming"}[name],
            "shards to batches of 1,024 samples of 128, not masked; ours are whole sentences with special tokens, "
            f"padding and word flags; theirs {what}; local files, no worker processes",
            ours="ours.read",
            theirs=f"rivals.read_{name}",
            options={"length": 128, "batch": PLACES // 128, "shuffled": shuffled},
            scale=1e-6,
            material=(material.text, material.shards),
        )
        for name, what in rivals.items()
        for shuffled in (False, True)
    ]


def _mask() -> list[Row]:
    return [
        Row(
            f"mask-{length}",
            "M tokens/s",
            "transformers DataCollatorForWholeWordMask",
            "whole-word masks over the same samples in memory: ours arrays in blocks of 131,072 places, theirs lists "
            "in batches of 32 with chinese_ref at hand",
            ours="ours.mask",
            theirs="rivals.mask",
            options={"length": length},
            scale=1e-6,
            material=(material.text, material.shards),
        )
        for length in SIZES
    ]


def _loader() -> list[Row]:
    return [
        Row(
            f"loader-{length}",
            "M tokens/s",
            "mosaicml-streaming + whole-word collator",
            "local shards to shuffled, masked batches of 32; ours with its thread, from opening the folder and hashing "
            "its shards on; theirs through DataLoader without workers, warm",
            ours="ours.loader",
            theirs="rivals.loader",
            options={"length": length, "batch": MICRO_BATCH},
            scale=1e-6,
            material=(material.text, material.shards),
        )
        for length in SIZES
    ]


def _step() -> list[Row]:
    return [
        Row(
            f"step-{length}-{short}",
            "samples/s",
            "transformers NezhaForPreTraining",
            f"forward, MLM and NSP losses and backward; {LAYERS} layers of base width, {batch} x {length}, dropout "
            f"0.1, weights and activations in {dtype}, no optimizer",
            ours="ours.step",
            theirs="rivals.step",
            options={"layers": LAYERS, "batch": batch, "length": length, "dtype": dtype},
            threads=2,
            memory=f"step-memory-{length}-{short}",
        )
        for length, batch in SIZES.items()
        for short, dtype in {"fp32": "float32", "bf16": "bfloat16"}.items()
    ]


def _lamb() -> list[Row]:
    rivals = {"timm": "timm Lamb", "timm-foreach": "timm Lamb, foreach", "adamw": "torch AdamW, foreach"}
    return [
        Row(
            f"lamb-{name}",
            "M parameters/s",
            rival,
            "one update of the 102.5M parameters of base in fp32, gradients at hand; no clipping on either side",
            ours="ours.lamb",
            theirs="rivals.optimizer",
            their_options={"name": name},
            scale=1e-6,
            threads=2,
        )
        for name, rival in rivals.items()
    ]


def _scrape() -> list[Row]:
    return [
        Row(
            "scrape",
            "scrapes/s",
            "prometheus_client's own instruments",
            "GET /metrics over HTTP from the same process, a connection each; the same families and series",
            ours="ours.scrape",
            theirs="rivals.scrape",
            material=(material.exposition,),
        )
    ]


ROWS: tuple[Row, ...] = (*_prepare(), *_read(), *_mask(), *_loader(), *_step(), *_lamb(), *_scrape())
