"""The page in a real browser: nothing fetched, nothing run, nothing too wide; and hostile text that stays text."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nezha_ds.corpus.figures import quantile
from nezha_ds.corpus.inspect import edges, folder_vocabulary, statistics
from nezha_ds.corpus.page import SHOWN_SHARDS, page
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.report import folder_report
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.data.preview import Preview, preview
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.pages.charts import Axis, Series, bar_chart, log_axis, scale
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import SPECIAL_TOKENS, Vocabulary, load_vocabulary
from tests.helpers.browser import Browser, browser, faint_text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img/src=x/onerror=alert(2)>',
    "&lt;b&gt;",
    "'`${1}",
    "</p></section>",
    "##<i>",
)
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(
    e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def write_page(folder: Path, out: Path, rows: int = 5, method: str = "whole-word") -> Preview:
    """What `nezha-ds inspect FOLDER --html OUT` does."""
    found = statistics(folder)
    vocabulary = folder_vocabulary(folder, found.manifest)
    masks = preview(DataSettings(shards=str(folder)), MaskingSettings(method=method), 1, vocabulary, rows)
    out.write_text(page(folder, found, masks, vocabulary, folder_report(folder)), encoding="utf-8")
    return masks


@pytest.fixture(scope="module")
def shown(embedded: Path, tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Preview:
    """The page of the shipped corpus, open in the browser."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    masks = write_page(embedded, path)
    assert path.stat().st_size < 200_000
    chromium.open(path)
    assert chromium.requests() == [path.as_uri()]
    return masks


@pytest.mark.parametrize("width", [320, 400, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(chromium: Browser, shown: Preview, width: int, scheme: str) -> None:
    chromium.resize(width)
    chromium.media(scheme)
    assert chromium.ask(TOO_WIDE) == []
    assert chromium.ask("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.log("browser") == []


def test_text_stands_out_from_what_is_behind_it(chromium: Browser, shown: Preview) -> None:
    for scheme in ("light", "dark"):
        chromium.media(scheme)
        assert faint_text(chromium) == []


def test_charts_have_bars_axes_and_names(chromium: Browser, shown: Preview, embedded: Path) -> None:
    found = statistics(embedded)
    chromium.resize(1280)
    charts = chromium.ask("""[...document.querySelectorAll('svg')].map(svg => ({
        role: svg.getAttribute('role'), title: svg.querySelector('title').textContent,
        bars: [...svg.querySelectorAll('rect')].map(bar => bar.getBoundingClientRect().height),
        labels: [...svg.querySelectorAll('text')].map(text => text.textContent)}))""")
    assert [chart["title"] for chart in charts] == ["Sentences", "Documents", "Words", "Samples"]
    expected = [np.count_nonzero(found.sentence_lengths), np.count_nonzero(found.document_lengths), 16]
    assert [len(chart["bars"]) for chart in charts[:3]] == expected
    for chart in charts:
        assert chart["role"] == "img"
        assert min(chart["bars"]) >= 1
        assert 100 < max(chart["bars"]) <= 168
        assert {"0%"} < {*chart["labels"]}
        assert any("tokens" in label for label in chart["labels"])


def test_words_are_outlined_and_masks_coloured(chromium: Browser, shown: Preview) -> None:
    outlines = chromium.ask("""[...document.querySelectorAll('.sample .w')].map(word =>
        [getComputedStyle(word).borderTopWidth, getComputedStyle(word).borderTopStyle].join())""")
    words = sum(int((row.word_starts & row.text).sum()) for row in shown.rows)
    assert outlines == ["1px,solid"] * words
    drawn = chromium.ask("""[...document.querySelectorAll('.sample b')].map(token =>
        [token.className, token.title, getComputedStyle(token).backgroundColor])""")
    assert len(drawn) == sum(int(row.predicted.sum()) for row in shown.rows)
    assert {name for name, _, _ in drawn} == {"masked", "random", "kept"}
    assert len({colour for _, _, colour in drawn}) == 3
    tokens = load_vocabulary().tokens
    hidden = [tokens[index].removeprefix("##") for row in shown.rows for index in row.ids[row.predicted].tolist()]
    assert [title.partition(": ")[0] for _, title, _ in drawn] == hidden
    assert {*chromium.ask("[...document.querySelectorAll('.sample p')].map(p => p.lang)")} == {"zh"}
    assert chromium.ask("document.documentElement.lang") == "en"


def test_it_prints_on_white(chromium: Browser, shown: Preview) -> None:
    chromium.media("light", medium="print")
    assert chromium.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.devtools("Page.printToPDF", printBackground=True)["data"]
    chromium.media("light")


def test_hostile_text_is_shown_as_text(chromium: Browser, tmp_path: Path) -> None:
    text = tmp_path / "<b>&\"'.txt"
    text.write_text("\n\n".join(f"<script>alert({number})</script>好人" for number in range(60)))
    folder = tmp_path / "<script>alert(3)<"
    prepare(PrepareSettings(inputs=(str(text),), out=folder, workers=1), progress=False)
    masks = write_page(folder, tmp_path / "page.html", rows=2, method="character")
    chromium.open(tmp_path / "page.html")
    original = "[...document.querySelector('.sample p').childNodes].map(word => word.textContent).join('')"
    assert "<script>" in chromium.ask(original) or "</script>" in chromium.ask(original)
    harmless(chromium, "<b>&\"'.txt", "<script>alert(3)<")

    # A vocabulary's entries can be anything.
    shipped = load_vocabulary()
    tokens = [token if token in SPECIAL_TOKENS else HOSTILE[n % 6] for n, token in enumerate(shipped.tokens)]
    html = page(folder, statistics(folder), masks, Vocabulary((*tokens,), b""), folder_report(folder))
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    chromium.open(tmp_path / "page.html")
    harmless(chromium, *(piece.removeprefix("##") for piece in HOSTILE))


def harmless(chromium: Browser, *pieces: str) -> None:
    """Nothing that came from the text became an element, an attribute, a request or a message; it is all there."""
    assert chromium.ask("document.querySelectorAll('script, img').length") == 0
    kinds = "[...new Set([...document.querySelectorAll('.sample *, li *, td *')].map(e => e.tagName))].sort()"
    assert {*chromium.ask(kinds)} <= {"B", "BR", "CODE", "I", "P", "SMALL", "SPAN"}
    names = "[...new Set([...document.querySelectorAll('body *:not(svg *)')].flatMap(e => e.getAttributeNames()))]"
    assert {*chromium.ask(names)} <= {"class", "title", "lang", "style", "role", "width", "height"}
    shown = chromium.ask("document.body.innerText")
    assert [piece for piece in pieces if piece not in shown] == []
    assert chromium.log("browser") == []
    assert len(chromium.requests()) == 1


def test_what_is_large_is_cut_and_fits(chromium: Browser, embedded: Path, tmp_path: Path) -> None:
    found = statistics(embedded)
    vocabulary = load_vocabulary()
    masks = preview(DataSettings(shards=str(embedded)), MaskingSettings(), 1, vocabulary, rows=0)
    manifest = read_manifest(embedded)
    many = manifest.model_copy(update={"shards": manifest.shards * 2500})
    large = {name: 2500 * getattr(found, name) for name in ("documents", "sentences", "words", "tokens", "unknowns")}
    html = page(embedded, replace(found, manifest=many, **large), masks, vocabulary, None)
    assert len(html) < 60_000
    assert f"The first {SHOWN_SHARDS} of 10,000." in html
    assert html.count("<code>train-") == html.count("<code>heldout-") == SHOWN_SHARDS // 2
    assert "all 10,000" in html
    assert "<h2>Input</h2>" not in html
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    chromium.open(tmp_path / "page.html")
    for width in (320, 400, 640, 1000, 1280):
        chromium.resize(width)
        assert chromium.ask(TOO_WIDE) == [], width


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("most", [0.0004, 0.01, 0.1, 0.31, 0.5, 0.99, 1.0, 1.7])
def test_an_axis_holds_its_bars_in_a_few_round_steps(most: float) -> None:
    top, step = scale(most)
    assert most <= top < most + step * (1 + 1e-9)
    assert 1 <= round(top / step) <= 5
    assert f"{step:e}"[:8] in {"1.000000", "2.000000", "5.000000"}


def test_bars_stand_where_their_lengths_lie() -> None:
    axis = log_axis("tokens", edges(7)[3:])
    drawn = bar_chart("t", "d", [Series("corpus", [0.1, 0.0, 0.2, 0.4], ["", "", "", "<"])], axis, "share")
    bars = re.findall(r'x="([\d.]+)%" y="[\d.]+" width="([\d.]+)%" height="([\d.]+)"', drawn)
    assert [float(height) for _, _, height in bars] == [42, 84, 168]
    middles = [(float(x) + float(width) / 2) / 100 for x, width, _ in bars]
    assert middles == pytest.approx([np.log2(n * (n + 1) / 16) / 2 for n in (4, 6, 7)], abs=1e-3)
    assert "<title>&lt;</title>" in drawn


def test_many_doublings_have_few_labels() -> None:
    axis = log_axis("tokens", edges(80))
    assert len(axis.labels) <= 7
    assert axis.place(axis.bounds[-1]) == 100
    assert Axis("x", range(5), []).place(1) == 25


def test_a_quantile_of_single_lengths_is_exact() -> None:
    lengths = np.array([1, 2, 2, 3, 3, 3, 7, 7, 7, 7])
    counts, bounds = np.bincount(lengths)[1:], [*range(1, 9)]
    for share in (0.05, 0.1, 0.25, 0.5, 0.65, 0.99, 1.0):
        assert quantile(counts, bounds, share) == np.quantile(lengths, share, method="inverted_cdf")
    assert quantile(np.array([10]), [64, 80], 0.5) == 71
