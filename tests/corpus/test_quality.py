"""The report's counts against counts by hand, on real text, whoever worked and however often it was interrupted."""

import json
import lzma
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nezha_ds.corpus import prepare as module
from nezha_ds.corpus import quality
from nezha_ds.corpus.clean import Cleaner, CleanSettings
from nezha_ds.corpus.dedup import document_key
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.quality import MEASURES, LineCounter, Tally, bin_of, one_in, together
from nezha_ds.corpus.report import Report, folder_report, show_report
from nezha_ds.corpus.settings import PrepareSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def statutes() -> list[str]:
    return lzma.decompress(find_files(["embedded"])[1].read_bytes()).decode().strip().split("\n\n")


def run(out: Path, *documents: str, workers: int = 1, **settings: Any) -> Report:
    source = out.with_suffix(".jsonl")
    source.write_text("\n".join(json.dumps({"text": text}) for text in documents) + "\n")
    prepare(PrepareSettings(inputs=(str(source),), out=out, workers=workers, **settings), progress=False)
    report = folder_report(out)
    assert report
    return report


# ----------------------------------------------------------------------------------------------------- real predicates

EVERYTHING = CleanSettings(
    min_characters=200,
    max_characters=20_000,
    min_chinese=0.5,
    max_repeated_lines=0.2,
    max_repeated_passages=0.45,
    max_controls=0.01,
    boilerplate=("web",),
)


def web_page(article: str) -> str:
    """An article as a careless crawl has it."""
    owner = "版权所有 © 1998-2020 某某网 京ICP备05070218号"
    return f"上一篇：国务院公报\n责任编辑：王 某\n{article}\n分享到 微博\n{owner}\n返回首页"


def test_each_predicate_on_real_text(tmp_path: Path, statutes: list[str]) -> None:
    """Real documents that are fit, and real ones that each have one thing wrong with them."""
    clean = Cleaner(EVERYTHING)
    good = [text for text in statutes[:300] if clean(text).failed is None][:40]
    heading = [text.split("\n")[0] for text in good[:3]]
    english = (ROOT / "LICENSE").read_text()
    lines = [text[: len(text) // 2].rsplit("\n", 1)[0] + "\n" + text for text in good[:5] if text.count("\n") > 5]
    passages = [text.replace("\n", "") + text.replace("\n", " ")[1:] for text in good[5:9]]
    mojibake = [text.encode("gb18030").decode("utf-8", errors="replace") for text in good[9:15]]
    novel = lzma.decompress(find_files(["embedded"])[0].read_bytes()).decode().replace("\n\n", "\n")
    pages = [web_page(text) for text in good[:7]]
    bad = {
        "too short": heading,
        "not Chinese": [english],
        "repeated lines": lines,
        "repeated passages": passages,
        "control characters": mojibake,
        "too long": [novel],
        "empty": [" \u3000\n\u200b"],
    }
    report = run(tmp_path / "out", *good, *pages, *(text for texts in bad.values() for text in texts), clean=EVERYTHING)
    assert report.dropped == {reason: len(texts) for reason, texts in bad.items()}
    assert report.kept == len(good) + len(pages)
    assert report.removed_lines == 5 * len(pages)
    assert report.dropped_characters["too long"] == len(clean(novel).text)
    assert report.kept_characters == sum(len(clean(text).text) for text in [*good, *pages])
    assert len(lines) >= 3
    for reason, texts in bad.items():
        beginnings = {clean(text).text[:60].replace("\n", " ") for text in texts}
        assert {*report.examples.get(reason, ())} <= beginnings
        assert len(report.examples.get(reason, ())) == (0 if reason == "empty" else min(3, len(beginnings)))


def test_a_run_without_limits_tells_what_any_limit_would_drop(tmp_path: Path, statutes: list[str]) -> None:
    mojibake = [text.encode("gb18030").decode("utf-8", errors="replace") for text in statutes[300:320]]
    documents = [*statutes[:150], *mojibake, (ROOT / "LICENSE").read_text()]
    told = run(tmp_path / "open", *documents)
    assert not told.dropped
    limits = {
        "characters": ("min_characters", 512, "too short", True),
        "share of Chinese": ("min_chinese", 0.8, "not Chinese", True),
        "repeated lines": ("max_repeated_lines", 0.01, "repeated lines", False),
        "repeated passages": ("max_repeated_passages", 0.3, "repeated passages", False),
        "control characters": ("max_controls", 0.05, "control characters", False),
    }
    for name, (setting, limit, reason, least) in limits.items():
        one = told.distributions[name]
        place = one.edges.index(limit)
        expected = sum(one.kept[: place + 1]) if least else sum(one.kept[place + 1 :])
        dropped = run(tmp_path / setting, *documents, clean=CleanSettings.model_validate({setting: limit})).dropped
        assert expected == dropped.get(reason, 0)
        assert name == "repeated lines" or expected > 0


# ------------------------------------------------------------------------------------------------------- who worked


def test_reports_do_not_depend_on_processes_or_restarts(
    tmp_path: Path, statutes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SMALLEST_TASK", 50_000)
    monkeypatch.setattr(quality, "_ALL_BELOW", 1)
    monkeypatch.setattr(quality, "_FEWEST", 3)
    documents = [*statutes[:120], *statutes[:20], *statutes[120:140]]
    settings = {"clean": CleanSettings(min_characters=100, max_repeated_passages=0.3), "deduplicate": True}
    one = run(tmp_path / "one", *documents, **settings)
    assert run(tmp_path / "two", *documents, workers=2, **settings) == one
    assert one.measured_one_in == 3
    assert one.dropped["copies"] + one.dropped["repeated passages"] > 20
    keys = [document_key(Cleaner(CleanSettings())(text).text) for text in documents]
    measured = sum(key % 3 == 0 for key in keys)
    for distribution in one.distributions.values():
        assert sum(distribution.kept) + sum(distribution.dropped) == measured

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "cut", *documents, **settings)
    receipts = sorted((tmp_path / "cut" / "receipts").iterdir())
    assert len(receipts) > 5
    for receipt in receipts[::2]:
        receipt.unlink()
    source = str(tmp_path / "cut.jsonl")
    prepare(PrepareSettings(inputs=(source,), out=tmp_path / "cut", workers=1, **settings), progress=False)
    assert folder_report(tmp_path / "cut") == one


@given(
    st.lists(st.tuples(st.sampled_from(["甲乙", "甲乙\n丙丁", "丙丁丙丁", "戊"]), st.booleans()), max_size=40),
    st.data(),
)
def test_tallies_of_parts_add_up_to_the_tally_of_the_whole(found: list[tuple[str, bool]], data: st.DataObject) -> None:
    clean, whole = Cleaner(CleanSettings()), Tally(2)
    parts = [Tally(2) for _ in range(3)]
    for text, stays in found:
        candidate, key = clean(text), document_key(text)
        for tally in (whole, parts[data.draw(st.integers(0, 2))]):
            if stays:
                tally.keep(candidate, key)
            else:
                tally.drop(candidate, key, "some reason")
    total, sum_of_parts = together([whole.quality()], 9), together([part.quality() for part in parts], 9)
    same = {"lines", "lines_short_by"}
    assert total.model_dump(exclude=same) == sum_of_parts.model_dump(exclude=same)


# ---------------------------------------------------------------------------------------------------------- the parts


@given(st.lists(st.lists(st.sampled_from(["一行", "二行", "三行", "四行", "五行", "六行"])), max_size=60))
def test_a_bounded_count_of_lines_knows_how_wrong_it_is(documents: list[list[str]]) -> None:
    exact = Counter(line for document in documents for line in {*document})
    for counted, listed in ((100, 100), (3, 100), (100, 2), (3, 2)):
        counter = LineCounter(counted, listed)
        for document in documents:
            counter.add("\n".join(document))
        told, short_by = counter.most()
        assert all(told[text] <= exact[text] <= told[text] + short_by for text in told)
        last = min(told.values(), default=0)
        assert all(exact[text] <= last + short_by for text in exact if text not in told)
        if counted == listed:
            assert told == {text: count for text, count in exact.items() if count > 1}


def test_lines_that_pages_share_come_first(tmp_path: Path, statutes: list[str]) -> None:
    report = run(tmp_path / "out", *(web_page(text) for text in statutes[:30]))
    first = [*report.frequent_lines.items()][:5]
    assert {*first} == {(line, 30) for line in web_page("").split("\n") if line}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_bins_and_limits_agree_at_the_edge(measure: quality.Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, edge in enumerate(measure.edges):
        exactly = measure._replace(of=lambda _, edge=edge: edge)
        # At the edge a document stays, whether the limit is the least or the most.
        assert bin_of(exactly, Cleaner(CleanSettings())("字")) == (place + 1 if measure.at_least else place)


def test_a_share_of_the_documents_is_measured() -> None:
    assert [one_in(size) for size in (0, 1 << 20, 8 << 20, 1 << 30, 10 << 30)] == [1, 1, 32, 32, 320]


# -------------------------------------------------------------------------------------------------------- the showing


def test_the_terminal_shows_what_was_left_out(tmp_path: Path, statutes: list[str]) -> None:
    report = run(tmp_path / "out", *statutes[:50], "[b]短文", clean=CleanSettings(min_characters=10))
    shown = StringIO()
    show_report(report, Console(file=shown, width=140))
    words = [line.split() for line in shown.getvalue().splitlines()]
    assert ["kept", "50", "98.0%"] in [line[:3] for line in words]
    assert ["too", "short", "1", "2.0%", "5", "0.0%", "[b]短文"] in words
    assert "of 51 measured " in shown.getvalue()
