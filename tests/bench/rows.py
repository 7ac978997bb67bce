"""The rows: what is measured, what both sides do, and what the numbers mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nezha_ds.model.config import preset
from nezha_ds.model.flops import step_flops
from tests.bench import material
from tests.bench.questions import predictions

PLACES = 1 << 17
"""Places (B x L) of a batch where reading is measured; both sides get the same."""
MICRO_BATCH = 32
LAYERS = 4
SIZES = {128: 16, 512: 4}
"""Samples of a step's batch, by length."""


@dataclass(frozen=True)
class Share:
    """How much of the time goes into arithmetic that is needed: FLOPs of the step a second by those of a product."""

    name: str
    flops: int
    """Of one unit of the row, by nezha_ds/model/flops.py: for both sides the same, whatever they compute in vain."""
    dtype: str
    """Of the product."""


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
    share: Share | None = None
    """The row for the share of the machine's matrix-product speed that both sides reach, if it is wanted."""
    beside_ourselves: bool = False
    """Whether the other side runs in our own environment."""
    quick: bool = True
    """Whether `--quick` measures it too, if it is not asked for by name."""


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
    samples = (
        "masks over the same samples in memory: ours arrays in blocks of 131,072 places, theirs lists in batches of 32"
    )
    whole = "transformers DataCollatorForWholeWordMask"
    rows = {
        "mask-128": ("whole-word", 128, whole, f"whole-word {samples} with chinese_ref at hand"),
        "mask-512": ("whole-word", 512, whole, f"whole-word {samples} with chinese_ref at hand"),
        "mask-character": (
            "character",
            128,
            "transformers DataCollatorForLanguageModeling",
            f"{samples}; single tokens on both sides, length 128",
        ),
        "mask-n-gram": ("n-gram", 128, whole, f"{samples}; ours groups of 1 to 4 words, theirs words; length 128"),
        "mask-span": ("span", 128, whole, f"{samples}; ours spans of 1 to 10 words, theirs words; length 128"),
        "mask-span-512": ("span", 512, whole, f"{samples}; ours spans of 1 to 10 words, theirs words; length 512"),
    }
    return [
        Row(
            name,
            "M tokens/s",
            rival,
            note,
            ours="ours.mask",
            theirs="rivals.mask",
            options={"length": length, "method": method},
            scale=1e-6,
            material=(material.text, material.shards),
            quick=name not in ("mask-n-gram", "mask-span-512"),
        )
        for name, (method, length, rival, note) in rows.items()
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


def _loader_variants() -> list[Row]:
    options: dict[str, dict[str, Any]] = {
        "doc-sentences": {"format": "doc-sentences"},
        "sentence-pair": {"format": "sentence-pair"},
        "segment-pair": {"format": "segment-pair"},
        "short": {"short_rate": 0.1},
        "character": {"method": "character"},
        "n-gram": {"method": "n-gram"},
        "span": {"method": "span"},
        "segment-pair-span": {"format": "segment-pair", "method": "span"},
        "segment-pair-span-512": {"format": "segment-pair", "method": "span", "length": 512},
    }
    return [
        Row(
            f"loader-{name}",
            "M tokens/s",
            "our full-sentences, whole words",
            "the row loader-128 (or 512) in another format or with another masking, beside it: what the choice costs; "
            "tokens count padding on both sides",
            ours="ours.loader",
            theirs="ours.loader",
            options={"length": 128, "batch": MICRO_BATCH} | own,
            their_options={"length": own.get("length", 128), "batch": MICRO_BATCH},
            scale=1e-6,
            material=(material.text, material.shards),
            beside_ourselves=True,
            quick=name == "segment-pair-span",
        )
        for name, own in options.items()
    ]


def _step_flops(length: int) -> int:
    """Of one sample, with P predictions on 15% of its places."""
    config = preset("base", num_hidden_layers=LAYERS)
    return step_flops(config, length, predictions(length), nsp=True)


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
            share=Share(f"step-share-{length}-{short}", _step_flops(length), dtype),
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
            name,
            "scrapes/s",
            "prometheus_client's own instruments",
            f"GET /metrics over HTTP from the same process, a connection each, of a run of {ranks} ranks on one node; "
            "the same families and series",
            ours="ours.scrape",
            theirs="rivals.scrape",
            options={"ranks": ranks},
            material=(material.exposition,),
        )
        for name, ranks in (("scrape", 2), ("scrape-64", 64))
    ]


def _watch() -> list[Row]:
    laptop = {"size": "tiny", "layers": preset("tiny").num_hidden_layers, "length": 128, "dtype": "float32"}
    return [
        Row(
            "watch",
            "samples/s",
            "the steps that are watched",
            "all that being watched costs a run of two ranks (marks, clocks, a record every 20 steps, scrapes) beside "
            "forward and backward of the laptop recipe's batch on one rank: a ratio of 200 is half a percent of a "
            "step; both sides are ours",
            ours="ours.watching",
            theirs="ours.step",
            options={"batch": 32},
            their_options={"batch": 32, **laptop},
            beside_ourselves=True,
        )
    ]


ROWS: tuple[Row, ...] = (
    *_prepare(),
    *_read(),
    *_mask(),
    *_loader(),
    *_loader_variants(),
    *_step(),
    *_lamb(),
    *_scrape(),
    *_watch(),
)
