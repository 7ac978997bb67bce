"""Near duplicates in the shipped text against exact Jaccard similarity, in hostile collections, and in a folder."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nezha_ds.corpus import near
from nezha_ds.corpus import prepare as module
from nezha_ds.corpus.dedup import Survey, verdicts
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.near import LEADERS, SHINGLE, near_copies, rows_of_a_band, shingles, sketches
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.sources import Piece, Reading, read
from nezha_ds.data.randomness import Purpose, below, draws, key_of
from nezha_ds.errors import ConfigError, LaunchError

VALUES = 128
THRESHOLD = 0.8


@pytest.fixture(scope="module")
def statutes() -> list[str]:
    """400 of the shipped articles, no two of them near each other."""
    path = find_files(["embedded"])[1]
    texts = [document.text.strip() for document in read(Piece(path, 0, None, 0), Reading())]
    texts = [text for text in texts if len(text) >= 300][:600]
    found = search(texts)
    return [text for text, gone in zip(texts, found, strict=True) if not gone][:400]


def search(texts: list[str], threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    return near_copies(sketches(texts, VALUES), np.zeros(len(texts), dtype=np.bool_), threshold)


def jaccard(one: str, other: str) -> float:
    """Of the sets of passages, by strings."""
    first, second = (
        {joined[place : place + SHINGLE] for place in range(max(1, len(joined) - SHINGLE + 1))}
        for joined in ("".join(text.split()) for text in (one, other))
    )
    return len(first & second) / len(first | second)


def numbers(seed: int, count: int, bound: int) -> list[int]:
    return below(draws(key_of(seed), np.arange(count, dtype=np.uint64), Purpose.OTHER), bound).tolist()


def swapped(text: str, seed: int) -> str:
    """Two sentences change places."""
    sentences = text.split("。")
    one, other = numbers(seed, 2, len(sentences))
    sentences[one], sentences[other] = sentences[other], sentences[one]
    return "。".join(sentences)


def changed(text: str, seed: int, count: int) -> str:
    """So many characters are replaced."""
    characters = list(text)
    for place in numbers(seed, count, len(text)):
        characters[place] = "口"
    return "".join(characters)


# ------------------------------------------------------------------------------------------------------- what is found


def test_edited_copies_are_found_and_others_are_not(statutes: list[str]) -> None:
    edited = [swapped(changed(text, seed, len(text) // 250), seed) for seed, text in enumerate(statutes)]
    exact = np.array([jaccard(text, copy) for text, copy in zip(statutes, edited, strict=True)])
    found = search([*statutes, *edited])
    assert not found[: len(statutes)].any()
    of_copies = found[len(statutes) :]
    clearly = exact >= THRESHOLD + 0.1  # three standard errors of 128 values
    assert clearly.sum() > 150
    assert of_copies[clearly].mean() >= 0.99
    # Spoilt until they are unlike what they were, and unlike everything else.
    spoilt = [changed(text, seed, len(text) // 10) for seed, text in enumerate(statutes)]
    unlike = np.array([jaccard(text, copy) for text, copy in zip(statutes, spoilt, strict=True)]) <= THRESHOLD - 0.15
    assert unlike.sum() > 350
    assert search([*statutes, *spoilt])[len(statutes) :][unlike].mean() <= 0.01


def test_sketches_estimate_the_jaccard_similarity(statutes: list[str]) -> None:
    pairs = [(text, changed(text, seed, 1 + seed % 20)) for seed, text in enumerate(statutes)]
    exact = np.array([jaccard(*pair) for pair in pairs])
    ones, others = (sketches(side, VALUES) for side in zip(*pairs, strict=True))
    estimated = ((ones == others).mean(axis=1) - 1 / 256) / (1 - 1 / 256)
    errors = estimated - exact
    expected = np.sqrt(exact * (1 - exact) / VALUES)
    assert abs(errors.mean()) < 4 * expected.mean() / np.sqrt(len(pairs))
    assert errors.std() < 1.15 * np.sqrt(np.square(expected).mean())


def test_sketches_are_the_same_on_any_processor() -> None:
    code = """
import hashlib
import numpy as np
from nezha_ds.corpus.near import sketches
texts = ["".join(chr(0x4E00 + (place**2 * 31 + size) % 9973) for place in range(size)) for size in range(1, 900, 9)]
print(hashlib.sha256(sketches(texts, 128).tobytes()).hexdigest())
"""
    root = str(Path(module.__file__).parents[2])
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": root, "RENSA_FORCE_KERNEL": kernel},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kernel in ("scalar", "auto")
    }
    assert len(told) == 1


def test_what_goes_is_similar_to_an_earlier_document(statutes: list[str]) -> None:
    texts = [changed(statutes[number % 20], number, number % 60) for number in range(300)]
    found = sketches(texts, VALUES)
    gone = near_copies(found, np.zeros(len(texts), dtype=np.bool_), THRESHOLD)
    agreement = (found[:, None] == found[None]).mean(axis=2)
    similar_to_earlier = (np.tril(agreement, -1) >= THRESHOLD).any(axis=1)
    assert not gone[0]
    assert 50 < gone.sum() < 250
    assert similar_to_earlier[gone].all()
    assert (agreement[gone][:, ~gone] >= THRESHOLD - 0.15).any(axis=1).all()  # and not far from one that stays


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_at_the_threshold(threshold: float) -> None:
    for values in (64, 128, 256, 1000):
        rows = rows_of_a_band(threshold, values)
        assert 1 - (1 - threshold**rows) ** (values // rows) >= 0.99
        assert rows == near.LARGEST_BAND or 1 - (1 - threshold ** (rows + 1)) ** (values // (rows + 1)) < 0.99


# ---------------------------------------------------------------------------------------------------- hostile documents


def test_short_documents_are_whole_passages() -> None:
    assert len(shingles("")) == len(shingles("一")) == len(shingles("一二三四五")) == 1
    assert len(shingles("一二三 四五\n六")) == 2
    texts = ["一", "二", "一", "一二", "二一", "一 二\n", "一二三四", "一二三四五", "一二三四五"]
    assert search(texts).tolist() == [False, False, True, False, False, True, False, False, True]
    assert not len(search([]))
    assert search(["一"]).tolist() == [False]


def test_equal_documents_cost_no_more_than_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """In documents that are sorted into buckets, band after band, and in pairs that are compared."""
    work: list[int] = []
    band_keys, agreement = near._band_keys, near._agreement
    monkeypatch.setattr(near, "_band_keys", lambda *of: work.append(len(of[1])) or band_keys(*of))
    monkeypatch.setattr(near, "_agreement", lambda *of: work.append(len(of[1])) or agreement(*of))
    count = 5_000
    equal = np.tile(sketches(["一模一样的文字"], VALUES), (count, 1))
    different = np.frombuffer(
        b"".join(sha256(number.to_bytes(4, "big")).digest() for number in range(count * VALUES // 32)), dtype=np.uint8
    ).reshape(count, VALUES)
    nobody = np.zeros(count, dtype=np.bool_)
    assert near_copies(equal, nobody, THRESHOLD).sum() == count - 1
    of_equal = sum(work)
    assert near_copies(different, nobody, THRESHOLD).sum() == 0
    assert of_equal < 3 * count < sum(work) - of_equal


def test_a_bucket_of_unequal_documents_is_not_compared_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    agreement = near._agreement
    monkeypatch.setattr(near, "_agreement", lambda *sides: compared.append(len(sides[1])) or agreement(*sides))
    count = 5_000
    found = np.frombuffer(
        b"".join(sha256(number.to_bytes(4, "big")).digest() for number in range(count * VALUES // 32)), dtype=np.uint8
    ).reshape(count, VALUES)
    crowded = found.copy()
    crowded[:, : rows_of_a_band(THRESHOLD, VALUES)] = 7  # one band is the same in all
    assert not near_copies(crowded, np.zeros(count, dtype=np.bool_), THRESHOLD).any()
    assert count < sum(compared) <= LEADERS * count + 100


def test_exact_copies_are_counted_as_such_and_lead_nobody() -> None:
    texts = ["甲乙丙丁戊己庚辛", "子丑寅卯辰巳午未", "甲乙丙丁戊己庚辛", "甲乙丙丁 戊己庚辛"]
    keys = np.array([1, 2, 1, 3], dtype=np.uint64)
    found = sketches(texts, VALUES)

    def judged(exact: bool, threshold: float) -> list[bytes]:
        surveys = [Survey(keys[part], found[part]) for part in (slice(0, 3), slice(3, 3), slice(3, 4))]
        return verdicts(surveys, exact, threshold)

    assert judged(True, THRESHOLD) == [b"\0\0\1", b"", b"\2"]
    assert judged(False, THRESHOLD) == [b"\0\0\2", b"", b"\2"]
    assert judged(True, 0) == [b"\0\0\1", b"", b"\0"]


# ------------------------------------------------------------------------------------------------------------- a folder


def test_any_number_of_processes_keeps_the_same_documents(
    tmp_path: Path, statutes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", 50_000)
    originals = statutes[:60]
    copies = [changed(text, seed, 2) for seed, text in enumerate(originals)]
    far = [number for number, pair in enumerate(zip(originals, copies, strict=True)) if jaccard(*pair) < 0.87]
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join([*originals, *originals[:5], *copies]))

    def run(name: str, workers: int) -> dict[str, bytes]:
        prepare(
            PrepareSettings(
                inputs=(str(source),), out=tmp_path / name, workers=workers, deduplicate=True, near_duplicates=0.8
            ),
            progress=False,
        )
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    one = run("one", 1)
    assert one == run("two", 2)
    report = json.loads(one["report.json"])
    assert report["dropped"]["copies"] == 5
    assert 60 - len(far) <= report["dropped"]["near copies"] <= 60
    assert report["kept"] == 60 + 60 - report["dropped"]["near copies"]
    assert report["examples"]["near copies"]
    with pytest.raises(ConfigError, match=r"different: near_duplicates\)"):
        prepare(PrepareSettings(inputs=(str(source),), out=tmp_path / "one", deduplicate=True), progress=False)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near._rensa.cache_clear()
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(LaunchError, match=r"near_duplicates needs rensa, .*`pip install 'nezha-ds\[clean\]'`"):
        prepare(PrepareSettings(out=tmp_path, near_duplicates=0.8), progress=False)


@pytest.mark.parametrize("threshold", [0.3, 1.5])
def test_a_threshold_that_finds_strangers_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"near_duplicates"):
        PrepareSettings(out=Path("x"), near_duplicates=threshold)
