"""Statistics against a recount, token by token; samples as they are drawn."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nezha_ds.corpus.inspect import beginnings, entropy, render, show, statistics, table
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import open_shard, read_manifest


def test_statistics_equal_a_slow_recount(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(f"第{number}篇。今天天气很好，我们去公园！" + "好" * number for number in range(40)))
    prepare(PrepareSettings(inputs=(str(source),), out=tmp_path / "out", workers=1, heldout=0.3), progress=False)
    found = statistics(tmp_path / "out")
    counts, sentences, documents, words = {}, [], [], []
    for entry in found.manifest.shards:
        columns = open_shard(tmp_path / "out", entry, 21128)
        starts = columns.word_starts(np.arange(len(columns.tokens)))
        edges = {*columns.sentences.tolist()}
        for place, token in enumerate(columns.tokens.tolist()):
            if entry.split == "train":
                counts[token] = counts.get(token, 0) + 1
            for lengths, begins in ((sentences, place in edges), (words, starts[place])):
                if begins:
                    lengths.append(0)
                lengths[-1] += 1
        documents += np.diff(columns.documents).tolist()
    assert {token: count for token, count in enumerate(found.token_counts.tolist()) if count} == counts
    for lengths, histogram in ((sentences, found.sentence_lengths), (documents, found.document_lengths)):
        assert histogram.tolist() == np.bincount([length.bit_length() - 1 for length in lengths]).tolist()
    assert found.word_lengths.tolist() == np.bincount(words).tolist()
    assert found.words_per_sentence == len(words) / len(sentences)
    share = np.array([*counts.values()]) / sum(counts.values())
    assert found.unigram_entropy == pytest.approx(-sum(share * np.log(share)))


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


def test_samples_are_spread_over_the_split(embedded: Path) -> None:
    manifest = read_manifest(embedded)
    samples = [*beginnings(embedded, manifest, 5, "train")]
    assert len(samples) == 5
    assert len({tuple(ids.tolist()) for ids, _ in samples}) == 5
    assert all(starts[0] for _, starts in samples)
    few = [*beginnings(embedded, manifest, 1000, "heldout")]
    assert len(few) == sum(entry.documents for entry in manifest.of("heldout"))


def test_words_are_apart_and_masks_in_colour() -> None:
    text = render(["北", "京", "大", "学"], [True, False, True, False], {1})
    assert text.plain == "北京 大学"
    assert [(text.plain[span.start : span.end], "red" in str(span.style)) for span in text.spans if span.style] == [
        ("北", False),
        ("京", True),
    ]


def test_a_folder_is_shown_with_the_masks_that_are_asked(embedded: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    console.print(table(statistics(embedded)))
    show(embedded, 2, mask=lambda ids, starts, number: range(number), console=console)
    output = console.file.getvalue()
    assert "2,459" in output
    assert "nats" in output
    assert output.count("41m") == 1  # red: nothing in sample 0, one token in sample 1


def test_a_swapped_vocabulary_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("一篇。")
    prepare(PrepareSettings(inputs=(str(source),), out=tmp_path / "out", workers=1), progress=False)
    vocabulary = tmp_path / "out" / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"one more\n")
    with pytest.raises(DataError, match=r"vocab\.txt is not the vocabulary that .* was prepared with"):
        show(tmp_path / "out", 1)
