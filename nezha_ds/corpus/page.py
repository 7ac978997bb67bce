"""One HTML file that shows what a prepared folder holds: counts, charts, masks, samples, and where it comes from.

It fetches nothing and runs nothing: style and charts stand in it, a policy in its head forbids the rest, and whatever
came from the text, the vocabulary or a path is escaped. A pure function of what was counted, so the same folder gives
the same bytes. 36 KB, and 3 KB for each sample of 128 tokens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

import nezha_ds
from nezha_ds.corpus.figures import fill_figure, length_figure, word_figure
from nezha_ds.corpus.inspect import Statistics, told, word
from nezha_ds.corpus.masks import OUTCOMES, Masks, Row, shares
from nezha_ds.corpus.report import Report
from nezha_ds.pages.html import document, table, tiles
from nezha_ds.shards import ShardEntry
from nezha_ds.text.vocab import Vocabulary

STYLE = Path(__file__).with_name("page.css")
SHOWN_SHARDS = 12
"""Rows of the table of shards; the rest is summed up."""
SHOWN_NAMES = 8
"""Inputs of a source, and faults of the input, that are named."""
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")


def page(folder: Path, found: Statistics, masks: Masks, vocabulary: Vocabulary, report: Report | None) -> str:
    """The whole page; `folder` is only named, not read."""
    body = "\n".join(
        [
            _head(folder, found),
            _lengths(found, masks),
            _masking(masks),
            _samples(masks, vocabulary),
            _frequent(found, vocabulary),
            _preparation(found),
            _input(report),
            _shards(found.manifest.shards),
            f'<footer class="soft"><small>Written by nezha-ds {escape(nezha_ds.__version__)} inspect.</small></footer>',
        ]
    )
    return document(f"{folder}: what it holds", body, STYLE.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------- the counts


def _head(folder: Path, found: Statistics) -> str:
    counted = {**told(found), "single-token entropy": f"{found.unigram_entropy:.2f} nats"}
    fingerprint = found.manifest.fingerprint
    return (
        f"<header><h1>{escape(str(folder))}</h1>\n"
        f'<p class="soft">Prepared text, fingerprint <code title="{fingerprint}">{fingerprint[:16]}</code>. The '
        "entropy is the loss of whoever knows only how frequent each token is: what a model must beat.</p></header>\n"
        f"{tiles(counted)}"
    )


def _lengths(found: Statistics, masks: Masks) -> str:
    charts = [
        length_figure("Sentences", "sentences", found.sentence_lengths, found.tokens / found.sentences),
        length_figure("Documents", "documents", found.document_lengths, found.tokens / found.documents),
        word_figure(found.word_lengths, masks),
        fill_figure(masks),
    ]
    return (
        '<section>\n<h2>Lengths</h2>\n<p class="soft">In tokens. Point at a bar for its count.</p>\n'
        f'<div class="charts">\n{"".join(charts)}</div>\n</section>'
    )


# ------------------------------------------------------------------------------------------------------------ the masks


_BECAME = {
    "masked": ("becomes [MASK]", "the model sees [MASK] here"),
    "random": ("becomes another entry of the vocabulary", "the model sees {seen} here"),
    "kept": ("stays as it is", "the model sees it as it is"),
}


def _masking(masks: Masks) -> str:
    total = max(1, sum(masks.outcomes))
    rows = [
        (
            f'<span class="w" lang="zh"><b class="{name}">字</b></span> {_BECAME[name][0]}',
            f"{asked:.2%}",
            f"{count / total:.2%}",
            f"{count:,}",
        )
        for name, asked, count in zip(OUTCOMES, masks.asked_outcomes, masks.outcomes, strict=True)
    ]
    rows.insert(0, ("text tokens to predict", f"{masks.asked_rate:.2%}", f"{masks.achieved_rate:.2%}", f"{total:,}"))
    counted = (
        f"Counted in {masks.samples:,} samples of {masks.length} places ({masks.format}), as method {masks.method} "
        f"masks them in the first epoch with seed {masks.seed}"
        + ("." if masks.whole else "; they are cut from shards spread over the folder.")
        + (f" Second segments: {shares(masks.pairs)}." if masks.pairs else "")
    )
    head = ("", "asked", "achieved", "tokens")
    return f"<section>\n<h2>Masking</h2>\n<p>{escape(counted)}</p>\n{table(head, rows, kind='narrow')}</section>"


def _samples(masks: Masks, vocabulary: Vocabulary) -> str:
    if not masks.rows:
        return ""
    legend = (
        '<p class="soft">Each outline is a word. <span class="w"><b class="masked">hidden</b></span> behind [MASK], '
        '<span class="w"><b class="random">replaced</b></span> by the small letters, '
        '<span class="w"><b class="kept">kept</b></span> but to be predicted all the same; point at one for what the '
        "model sees.</p>"
    )
    samples = "\n".join(_sample(row, vocabulary) for row in masks.rows)
    return f"<section>\n<h2>Samples</h2>\n{legend}\n{samples}\n</section>"


def _sample(row: Row, vocabulary: Vocabulary) -> str:
    bounds = [*np.flatnonzero(row.word_starts).tolist(), len(row.ids)]
    words = "".join(_word(row, range(*bound), vocabulary) for bound in pairwise(bounds))
    name = f"sample {row.number:,}" + (f", second segment: {row.label}" if row.label else "")
    return f'<article class="sample"><small>{escape(name)}</small><p{_lang(words)}>{words}</p></article>'


def _word(row: Row, places: Iterable[int], vocabulary: Vocabulary) -> str:
    """One word with its outline, or a [SEP]."""
    pieces = [_token(row, place, vocabulary) for place in places]
    inner = "".join(piece for piece, _ in pieces)
    return f'<span class="{"w" if pieces[0][1] else "sep"}">{inner}</span>'


def _token(row: Row, place: int, vocabulary: Vocabulary) -> tuple[str, bool]:
    """A token as HTML, and whether it is text."""
    index, seen = int(row.ids[place]), int(row.seen[place])
    piece = escape(vocabulary.text_of(index))
    if not row.predicted[place]:
        inner = f'<span class="unk">{piece}</span>' if index == vocabulary.unk_id else piece
        return inner, bool(row.text[place])
    outcome = "masked" if seen == vocabulary.mask_id else "kept" if seen == index else "random"
    replacement = escape(vocabulary.text_of(seen))
    title = f"{piece}: {_BECAME[outcome][1].format(seen=replacement)}"
    shown = f"{piece}<i>{replacement}</i>" if outcome == "random" else piece
    return f'<b class="{outcome}" title="{title}">{shown}</b>', True


def _lang(text: str) -> str:
    """The attribute that lets a browser choose Chinese letters, for text that has any."""
    return ' lang="zh"' if _HAN.search(text) else ""


# ----------------------------------------------------------------------------------------------------------- the corpus


def _frequent(found: Statistics, vocabulary: Vocabulary) -> str:
    single = [(vocabulary.text_of(index), count) for index, count in found.frequent_tokens]
    words = [(word(ids, vocabulary), count) for ids, count in found.frequent_words]
    compared = f"of two tokens or more, among {found.compared_words:,} words"
    return (
        '<section>\n<h2>Most frequent</h2>\n<p class="soft">In the training split.</p>\n<div class="frequent">\n'
        f"{_ranking('Tokens', 'single ones, punctuation among them', single)}{_ranking('Words', compared, words)}"
        "</div>\n</section>"
    )


def _ranking(title: str, what: str, ranked: Sequence[tuple[str, int]]) -> str:
    items = "".join(
        f'<li style="--share:{100 * count / ranked[0][1]:.1f}%"><span{_lang(name)}>{escape(name)}</span>'
        f"<span>{count:,}</span></li>"
        for name, count in ranked
    )
    return f"<div><h3>{title}</h3><small>{what}</small><ol>{items}</ol></div>\n"


def _preparation(found: Statistics) -> str:
    manifest = found.manifest
    rows = [
        ("segmenter", escape(f"{manifest.segmenter.name} {manifest.segmenter.version}")),
        ("dictionary", _hash(manifest.segmenter.dictionary_sha256)),
        ("tokenizer", escape(f"{manifest.tokenizer.kind}, {'un' if manifest.tokenizer.lowercase else ''}cased")),
        (
            "vocabulary",
            f"{manifest.tokenizer.vocabulary_size:,} entries, {_hash(manifest.tokenizer.vocabulary_sha256)}",
        ),
        ("normalisation", escape(manifest.normalisation)),
        ("held out", f"{manifest.heldout:.2%} of the documents asked, {found.heldout_documents:,} documents"),
        ("fingerprint", f"<code>{manifest.fingerprint}</code>"),
    ]
    sources = [
        (
            f"{escape(source.name)}<br><small>{_names(source.inputs)}</small>",
            str(source.weight) if source.weight else "by length",
            *_sums([entry for entry in manifest.shards if entry.source == source.name]),
        )
        for source in manifest.sources
    ]
    head = ("source", "weight", *_SUMMED)
    return (
        f"<section>\n<h2>Preparation</h2>\n{table(('', ''), rows, kind='narrow words', numbers=False)}"
        f"{table(head, sources, more=(1, 3, 4))}</section>"
    )


def _input(report: Report | None) -> str:
    """What became of the input, where the report is there."""
    if report is None:
        return ""
    rows = [
        ("documents kept", f"{report.kept:,}"),
        *((f"left out: {escape(reason)}", f"{count:,}") for reason, count in report.dropped.items()),
        *((f"broken input: {escape(kind)}", f"{count:,}") for kind, count in report.faults.items()),
        ("boilerplate lines removed", f"{report.removed_lines:,}"),
    ]
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in report.first_faults[:SHOWN_NAMES])
    return (
        f"<section>\n<h2>Input</h2>\n{table(('', ''), rows, kind='narrow')}"
        + (f'<p class="soft">The first faults:</p><ul>{faults}</ul>' if faults else "")
        + "</section>"
    )


def _shards(entries: Sequence[ShardEntry]) -> str:
    rows = [
        (f"<code>{escape(entry.name)}</code>", entry.split, escape(entry.source), *_sums([entry]), _hash(entry.sha256))
        for entry in entries[:SHOWN_SHARDS]
    ]
    cut = f'<p class="soft">The first {SHOWN_SHARDS} of {len(entries):,}.</p>\n' if len(entries) > SHOWN_SHARDS else ""
    foot = (f"all {len(entries):,}", "", "", *_sums(entries), "")
    head = ("shard", "split", "source", *_SUMMED, "SHA-256")
    shown = table(head, rows, foot, more=(1, 2, 4, 5, 8))
    return f"<section>\n<h2>Shards</h2>\n{cut}{shown}</section>"


_SUMMED = ("documents", "sentences", "words", "tokens", "MB")
_COUNTED: tuple[Literal["documents", "sentences", "words", "tokens"], ...] = (
    "documents",
    "sentences",
    "words",
    "tokens",
)


def _sums(entries: Sequence[ShardEntry]) -> Iterator[str]:
    for name in _COUNTED:
        yield f"{sum(getattr(entry, name) for entry in entries):,}"
    yield f"{sum(entry.bytes for entry in entries) / 1e6:,.2f}"


def _hash(digest: str) -> str:
    return f'<code title="{escape(digest)}">{escape(digest[:12])}</code>'


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return escape(", ".join(names[:SHOWN_NAMES]) + more)
