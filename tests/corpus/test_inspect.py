"""Statistics against a recount, token by token; samples as they are drawn."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nezha_ds.corpus import inspect
from nezha_ds.corpus.inspect import (
    as_json,
    by_length,
    edges,
    entropy,
    folder_vocabulary,
    statistics,
    word,
)
from nezha_ds.corpus.prepare import REPORT, prepare
from nezha_ds.corpus.report import folder_report
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.terminal import bars, render, show, table
from nezha_ds.data.preview import Preview, Row, preview
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import Columns, open_shard, pack_words, read_manifest
from nezha_ds.text.vocab import Vocabulary, load_vocabulary


def masks_of(folder: Path, rows: int = 0) -> Preview:
    return preview(DataSettings(shards=str(folder)), MaskingSettings(), 1, load_vocabulary(), rows)


def row(*tokens: str, words: str, predicted: str, known: dict[str, int]) -> Row:
    """A sample of these tokens, with marks for word starts and predictions, and the ids that they get."""
    ids = np.array([known.setdefault(token, len(known)) for token in tokens])
    begins, hidden = (np.array([mark == "x" for mark in marks]) for marks in (words, predicted))
    text = np.array([token != "[SEP]" for token in tokens])
    return Row(number=0, ids=ids, seen=ids, word_starts=begins, text=text, predicted=hidden)


@pytest.mark.parametrize("block", [8, inspect._BLOCK])
def test_statistics_equal_a_slow_recount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(inspect, "_BLOCK", block)
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(f"第{number}篇。今天天气很好，我们去公园！" + "好" * number for number in range(40)))
    prepare(PrepareSettings(inputs=(str(source),), out=tmp_path / "out", workers=1, heldout=0.3), progress=False)
    found = statistics(tmp_path / "out")
    counts, sentences, documents, words, spelled = Counter(), [], [], [], []
    for entry in found.manifest.shards:
        columns = open_shard(tmp_path / "out", entry, 21128)
        starts = columns.word_starts(np.arange(len(columns.tokens)))
        edges_of_sentences = {*columns.sentences.tolist()}
        for place, token in enumerate(columns.tokens.tolist()):
            counts[token] += entry.split == "train"
            for lengths, begins in ((sentences, place in edges_of_sentences), (words, starts[place])):
                if begins:
                    lengths.append(0)
                lengths[-1] += 1
            if entry.split == "train":
                spelled += [()] if starts[place] else []
                spelled[-1] += (token,)
        documents += np.diff(columns.documents).tolist()
    counts, expected = +counts, Counter(word for word in spelled if 2 <= len(word) <= 4)
    assert {token: count for token, count in enumerate(found.token_counts.tolist()) if count} == counts
    for frequent, true in ((found.frequent_tokens, counts), (found.frequent_words, expected)):
        assert [count for _, count in frequent] == sorted(true.values(), reverse=True)[: inspect.FREQUENT]
        assert all(true[what] == count for what, count in frequent)
    for lengths, histogram in ((sentences, found.sentence_lengths), (documents, found.document_lengths)):
        assert histogram.tolist() == np.histogram(lengths, edges(len(histogram)))[0].tolist()
        assert edges(len(histogram))[-2] <= max(lengths) < edges(len(histogram))[-1]
    assert found.word_lengths.tolist() == np.bincount(words).tolist()
    assert found.words_per_sentence == len(words) / len(sentences)
    assert found.unigram_entropy == pytest.approx(entropy(np.array([*counts.values()])))
    assert found.compared_words == len(spelled)


def test_of_a_wide_vocabulary_words_of_three_tokens_fit(tmp_path: Path) -> None:
    tokens = np.array([70000, 999, 70000, 999, 1, 2, 3, 4, 5, 6, 7, 0, 0], np.uint32)
    starts = np.array([n in (0, 2, 4, 7, 11) for n in range(len(tokens))])
    columns = Columns(tokens, pack_words(starts), documents=np.zeros(0, int), sentences=np.zeros(0, int))
    packed = inspect._pack(columns, 100, inspect._bits(70001))
    assert [*inspect._most_frequent([packed], 17)] == [((70000, 999), 2), ((0, 0), 1), ((1, 2, 3), 1)]


def test_many_words_are_compared_in_part(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics(embedded)
    monkeypatch.setattr(inspect, "_COUNTED_WORDS", 1000)
    part = statistics(embedded)
    assert part.compared_words == 1000 < whole.compared_words == sum(e.words for e in whole.manifest.of("train"))
    assert part.frequent_words[0][1] < whole.frequent_words[0][1]
    assert part.tokens == whole.tokens


@pytest.mark.parametrize("length", [*range(1, 70), 4095, 4096, 65_537, 60_000_000])
def test_a_length_lies_in_its_bin(length: int) -> None:
    histogram = by_length(np.array([length]))
    *_, start, end = edges(len(histogram))
    assert start <= length < end
    assert histogram.sum() == histogram[-1] == 1


def test_a_line_of_bars_has_one_for_each_doubling() -> None:
    assert bars(by_length(np.array([4, 5, 6, 7, 8, 15, 40]))) == "4 █▄ ▂ 64 tokens"


def test_entropy_of_equal_and_of_single_counts() -> None:
    assert entropy(np.full(1000, 7)) == pytest.approx(np.log(1000))
    assert entropy(np.array([0, 5])) == 0


def test_the_shipped_corpus_is_sane(embedded: Path) -> None:
    found = statistics(embedded)
    # BERT's vocabulary has no “ and ”, which are 0.55% of all; without them 0.08%.
    assert found.unknown_rate < 0.007
    assert 6.0 < found.unigram_entropy < 6.5
    assert 30 < found.tokens_per_sentence < 45
    assert 1.6 < found.tokens_per_word < 2.0
    assert found.token_counts.sum() == sum(entry.tokens for entry in found.manifest.of("train"))


def test_words_are_apart_and_masks_in_colour() -> None:
    known: dict[str, int] = {}
    sample = row("北", "京", "大", "##学", "[SEP]", "好", words="x-x-xx", predicted="-x----", known=known)
    text = render(sample, Vocabulary(tuple(known), b""))
    assert text.plain == "北京 大学 [SEP] 好"
    assert [(text.plain[span.start : span.end], str(span.style)) for span in text.spans if span.style] == [
        ("北", "cyan"),
        ("京", "bold white on red"),
        ("[SEP]", "dim"),
    ]


def test_without_colour_masks_are_in_brackets() -> None:
    known: dict[str, int] = {}
    sample = row(*"北京大学很好看", words="x-x-xx-", predicted="xx-x-xx", known=known)
    assert render(sample, Vocabulary(tuple(known), b""), brackets=True).plain == "[北京] 大[学] 很 [好看]"
    sample = row(*"北京大学", words="x-x-", predicted="xxxx", known=known)
    assert render(sample, Vocabulary(tuple(known), b""), brackets=True).plain == "[北京] [大学]"


def test_a_continuation_loses_its_marks() -> None:
    known: dict[str, int] = {}
    sample = row("##a", "##b", words="x-", predicted="--", known=known)
    assert render(sample, Vocabulary(tuple(known), b"")).plain == "ab"
    assert word((0, 1), Vocabulary(("play", "##ing"), b"")) == "playing"


def test_a_folder_is_shown_in_colour(embedded: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    masks = masks_of(embedded, rows=2)
    console.print(table(statistics(embedded), masks))
    show(masks.rows, load_vocabulary(), console)
    output = console.file.getvalue()
    assert "2,459" in output
    assert "nats" in output
    assert "of 15.00% asked (whole-word)" in output
    assert output.count("41m") == sum(int(each.predicted.sum()) for each in masks.rows)


def test_all_statistics_go_through_json(embedded: Path) -> None:
    found, masks = statistics(embedded), masks_of(embedded)
    tree = json.loads(json.dumps(as_json(found, masks, load_vocabulary(), folder_report(embedded))))
    assert tree["documents"] == tree["report"]["kept"] == 2459
    assert sum(count for _, _, count in tree["sentence_lengths"]) == tree["sentences"]
    assert sum(count for _, _, count in tree["document_lengths"]) == tree["documents"]
    assert sum(count for _, _, count in tree["word_lengths"]) == tree["words"]
    assert sum(size * count for size, _, count in tree["word_lengths"]) == tree["tokens"]
    assert all(
        start <= end < after
        for (_, end, _), (after, *_), (start, *_) in zip(
            tree["document_lengths"], tree["document_lengths"][1:], tree["document_lengths"], strict=False
        )
    )
    assert tree["frequent_words"][0] == ["或者", 17520]
    assert abs(tree["masking"]["achieved_rate"] - 0.15) < 0.002
    assert tree["fingerprint"] == read_manifest(embedded).fingerprint


def test_a_report_of_another_version_is_passed_over(embedded: Path, tmp_path: Path) -> None:
    assert folder_report(tmp_path) is None
    (tmp_path / REPORT).write_text('{"kept": 1, "gone": 2}')
    assert folder_report(tmp_path) is None
    (tmp_path / REPORT).write_bytes((embedded / REPORT).read_bytes())
    assert folder_report(tmp_path) is not None


def test_a_swapped_vocabulary_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("一篇。")
    prepare(PrepareSettings(inputs=(str(source),), out=tmp_path / "out", workers=1), progress=False)
    vocabulary = tmp_path / "out" / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"one more\n")
    with pytest.raises(DataError, match=r"vocab\.txt is not the vocabulary that .* was prepared with"):
        folder_vocabulary(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_a_bar_shows_where_there_is_much_to_read(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics(embedded, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(inspect, "_QUICK", 0)
    statistics(embedded, progress=True)
    *_, last = capsys.readouterr().err.splitlines()  # and lines before it where reading takes half a minute
    assert re.fullmatch(r"inspect 100% · 7\.6 MB in .*/s", last)
