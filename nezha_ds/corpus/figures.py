"""The charts of the page: lengths of sentences, documents and words, and how full samples are."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nezha_ds.corpus.inspect import Counts, edges
from nezha_ds.corpus.masks import Masks
from nezha_ds.pages.charts import Axis, Series, bar_chart, log_axis, named_axis
from nezha_ds.pages.html import figure

LONGEST_SHOWN_WORD = 8
"""Longer words share the last bar."""


def length_figure(title: str, things: str, counts: Counts, mean: float) -> str:
    """A histogram of `by_length`, from the first bin that holds anything on."""
    first, total = int(np.flatnonzero(counts)[0]), int(counts.sum())
    counts, bounds = counts[first:], edges(len(counts))[first:]
    shares = (counts / total).tolist()
    half, most = (quantile(counts, bounds, share) for share in (0.5, 0.99))
    said = f"Mean {mean:,.1f}, median {half:,}, one in a hundred over {most:,}."
    hints = [
        f"{_range(start, end - 1)} tokens: {count:,} {things} ({share:.2%})"
        for (start, end), count, share in zip(pairwise(bounds), counts.tolist(), shares, strict=True)
    ]
    # Bins are not equally wide: where a bar's area is its share, none stands out for its width.
    heights = [share / math.log2(end / start) for (start, end), share in zip(pairwise(bounds), shares, strict=True)]
    series = Series("corpus", heights, hints)
    return figure(title, said, bar_chart(title, said, [series], log_axis("tokens", bounds), "share per doubling"))


def word_figure(lengths: Counts, masks: Masks) -> str:
    """Word lengths of the corpus beside those of what is masked."""
    names = [*map(str, range(1, LONGEST_SHOWN_WORD)), f"{LONGEST_SHOWN_WORD}+"]
    masked = "masked tokens" if masks.method == "character" else "masked words"
    series = [
        _word_series("corpus", "words", names, _word_bars(lengths)),
        _word_series("chosen", masked, names, _word_bars(np.array(masks.word_lengths, np.int64))),
    ]
    legend = f'<span class="key corpus"></span>all words <span class="key chosen"></span>{masked}'
    said = "Words of the corpus beside those that masking chose, by length."
    axis = named_axis("tokens of a word", names)
    return figure("Words", legend, bar_chart("Words", said, series, axis, "share of words"))


def _word_series(name: str, things: str, names: Sequence[str], counts: Sequence[int]) -> Series:
    shares = [count / max(1, sum(counts)) for count in counts]
    hints = [
        f"{length} tokens: {count:,} {things} ({share:.2%})"
        for length, count, share in zip(names, counts, shares, strict=True)
    ]
    return Series(name, shares, hints)


def _word_bars(lengths: Counts) -> list[int]:
    """(LONGEST_SHOWN_WORD,): words of 1, 2, … tokens, the last of so many or more."""
    padded = np.pad(lengths, (0, LONGEST_SHOWN_WORD + 1))
    return [*padded[1:LONGEST_SHOWN_WORD].tolist(), int(padded[LONGEST_SHOWN_WORD:].sum())]


def fill_figure(masks: Masks) -> str:
    """How many samples are full to which part."""
    counts, total = masks.fill.tolist(), int(masks.fill.sum())
    said = (
        f"{masks.mean_fill:.1%} of the places hold tokens at length {masks.length} ({masks.format}), the rest padding."
    )
    hints = [
        f"{10 * tenth} to {10 * tenth + 10}% full: {count:,} samples ({count / total:.2%})"
        for tenth, count in enumerate(counts)
    ]
    series = Series("corpus", [count / total for count in counts], hints)
    axis = Axis("places that hold tokens", range(11), [(tenth, f"{10 * tenth}%") for tenth in range(0, 11, 2)])
    return figure("Samples", said, bar_chart("Samples", said, [series], axis, "share of samples"))


def quantile(counts: Counts, bounds: Sequence[int], share: float) -> int:
    """The length below which `share` of a histogram lies, exact where a bin is one length, else within the bin."""
    ends = np.cumsum(counts)
    wanted = share * float(ends[-1])
    place = int(np.searchsorted(ends, wanted))
    inside = 1 - (float(ends[place]) - wanted) / float(counts[place])
    return bounds[place] + int(inside * (bounds[place + 1] - bounds[place] - 1))


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
