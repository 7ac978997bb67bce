"""What a prepared folder holds, for the terminal: a table, and samples with words apart and masks on red.

On a pipe, or wherever there is no colour, masks stand in brackets and lines are not wrapped.
"""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nezha_ds.corpus.inspect import Counts, Statistics, edges, told
from nezha_ds.corpus.masks import Masks, Row, shares
from nezha_ds.text.vocab import Vocabulary


def table(found: Statistics, masks: Masks) -> Table:
    """The statistics to be printed."""
    rows = {
        **told(found),
        "entropy of single tokens": f"{found.unigram_entropy:.3f} nats",
        "tokenizer": f"{found.manifest.tokenizer.kind}, {found.manifest.tokenizer.vocabulary_size:,} entries",
        "segmenter": f"{found.manifest.segmenter.name} {found.manifest.segmenter.version}",
        "shards": f"{len(found.manifest.shards):,} ({found.manifest.total('bytes') / 1e6:,.1f} MB)",
        "fingerprint": found.manifest.fingerprint[:16],
        "sentence lengths": bars(found.sentence_lengths),
        "document lengths": bars(found.document_lengths),
        "masked tokens": f"{masks.achieved_rate:.2%} of {masks.asked_rate:.2%} asked ({masks.method})",
        "places filled": f"{masks.mean_fill:.1%} at length {masks.length} ({masks.format})",
        **({"second segments": shares(masks.pairs)} if masks.pairs else {}),
    }
    grid = Table(show_header=False, box=None)
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def bars(counts: Counts) -> str:
    """A histogram of `by_length` as one line of blocks, one to each doubling, from the first that holds anything on."""
    powers = [index for index, bound in enumerate(edges(len(counts) - 1)) if bound & (bound - 1) == 0]
    doublings = np.add.reduceat(counts, powers)
    first = int(np.flatnonzero(doublings)[0])
    heights = np.ceil(doublings[first:] * 8 / doublings.max()).astype(int)
    blocks = "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)
    return f"{1 << first:,} {blocks} {1 << len(powers):,} tokens"


def show(rows: Sequence[Row], vocabulary: Vocabulary, console: Console) -> None:
    """Print samples with words apart and masks in colour; where there is no colour, in brackets and unwrapped."""
    plain = console.color_system is None or console.no_color
    for row in rows:
        console.print(render(row, vocabulary, brackets=plain), soft_wrap=not console.is_terminal)
        console.print()


_WORD_STYLES = ("", "cyan")
_MASK_STYLE = "bold white on red"


def render(row: Row, vocabulary: Vocabulary, brackets: bool = False) -> Text:
    """A sample as text: words apart and in two colours by turns, what is to be predicted on red or in brackets.

    Before a pair stands what its second segment is.
    """
    text, words = Text(), 0
    if row.label:
        text.append(f"{row.label}: ", "dim")
    hidden: list[bool] = [*row.predicted.tolist(), False]
    begins: list[bool] = [*row.word_starts.tolist(), True]
    ids: list[int] = row.ids.tolist()
    for position, index in enumerate(ids):
        if begins[position] and position:
            text.append(" ")
        words += begins[position]
        piece = vocabulary.text_of(index)
        if brackets and hidden[position]:
            opens = begins[position] or not hidden[position - 1]
            closes = begins[position + 1] or not hidden[position + 1]
            piece = "[" * opens + piece + "]" * closes
        style = _MASK_STYLE if hidden[position] else _WORD_STYLES[words % len(_WORD_STYLES)]
        text.append(piece, style if row.text[position] else "dim")
    return text
