"""Both forms of WikiExtractor's output give the same articles, wherever the file is cut; half a block is a fault.

`golden/wikiextractor` is what WikiExtractor 3.1.0 itself made of the dump beside it, with and without --json.
"""

import bz2
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.corpus import sources
from nezha_ds.corpus.faults import Fault, tell
from nezha_ds.corpus.inputs import cut, find_files
from nezha_ds.corpus.sources import Document, Piece, Reading, Separation, read
from nezha_ds.corpus.wikiextractor import decode_entities, recognise
from nezha_ds.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "wikiextractor"


def documents(path: Path, size: int = 1 << 30, separation: Separation = "blank-line") -> list[Document]:
    pieces = [piece for file in find_files([str(path)]) for piece in cut(file, size, separation)]
    return [document for piece in pieces for document in read(piece, Reading(separation))]


def texts(path: Path, size: int = 1 << 30, separation: Separation = "blank-line") -> list[str]:
    return [document.text.strip() for document in documents(path, size, separation)]


ARTICLES = [
    "不等式\n\n不等式比较两个数的大小，例如 a < b 或者 b > a。\n性质.\n若 a < b 且 b < c，则 a < c。AT&T 与此无关。\n"
    "两边同加一个数，不等号的方向不变。",
    '论"大于号">与其他\n\n题名里有引号和尖括号的条目。\n空行之后还是同一篇。',
    "",  # an article of templates alone
    "实体\n\n写法&amp;lt;与\u00a0空格，</doc>也只是字。",
]


@pytest.mark.parametrize("form", ["doc", "json"])
def test_what_it_writes_is_recognised_and_read(form: str) -> None:
    assert texts(GOLDEN / form) == ARTICLES


def test_version_2_wrote_the_title_into_both_forms(tmp_path: Path) -> None:
    row = {"id": "53", "url": "https://zh.wikipedia.org/wiki?curid=53", "title": "经济学", "text": "经济学\n\n是……"}
    (tmp_path / "wiki_00").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert texts(tmp_path) == ["经济学\n\n是……"]


@pytest.mark.parametrize("size", [1, 100, 300, 500])
@pytest.mark.parametrize("form", ["doc", "json"])
def test_any_cut_gives_the_same_articles(form: str, size: int) -> None:
    path = GOLDEN / form / "AA" / "wiki_00"
    pieces = cut(path, size, "blank-line")
    assert len(pieces) > 1
    assert (
        all(
            piece.stop == path.stat().st_size or path.read_bytes()[: piece.stop].endswith(b"</doc>") for piece in pieces
        )
        or form == "json"
    )
    assert documents(path, size) == documents(path)


def test_packed_files_are_recognised_too(tmp_path: Path) -> None:
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress((GOLDEN / "doc" / "AA" / "wiki_00").read_bytes()))
    assert texts(tmp_path) == ARTICLES


def test_what_was_asked_for_is_obeyed(tmp_path: Path) -> None:
    path = GOLDEN / "doc" / "AA" / "wiki_00"
    assert texts(path, separation="line")[0].startswith('<doc id="13"')
    assert texts(path, separation="file") == [path.read_text().strip()]
    (tmp_path / "a.jsonl").write_text('{"title": "题", "text": "1 &lt; 2"}\n')
    assert texts(tmp_path / "a.jsonl") == ["1 &lt; 2"]
    assert texts(tmp_path / "a.jsonl", separation="wikiextractor") == ["题\n\n1 < 2"]
    (tmp_path / "b.txt").write_text("没有标记的文字。\n")
    with pytest.raises(DataError, match=r"b\.txt, line 1: text outside of a block"):
        texts(tmp_path / "b.txt", separation="wikiextractor")


@pytest.mark.parametrize(
    "beginning",
    [
        "<doc>\n<url>http://news</url>",
        '文字\n<doc id="1" url="" title="">\n',
        '{"id": "1", "text": "甲"}',
        '<doc id="1"',
    ],
)
def test_nothing_else_is_taken_for_it(beginning: str) -> None:
    assert recognise(beginning.encode()) is None


def test_only_entities_are_decoded() -> None:
    assert decode_entities("&lt;p&gt; &#20013;&#x6587;&nbsp;&amp;lt; AT&T ?a=1&copy=2 &无;") == (
        "<p> 中文\u00a0&lt; AT&T ?a=1&copy=2 &无;"
    )


HEAD = '<doc id="{0}" url="u" title="{0}">\n'


@pytest.mark.parametrize(
    ("text", "kept", "faults"),
    [
        (HEAD.format(1) + "一\n", [], ["line 1: a block without its end"]),
        (HEAD.format(1) + "一\n</doc>", ["一"], []),
        ("\ufeff" + HEAD.format(1) + "一\n</doc> \r\n\n", ["一"], []),
        (HEAD.format(1) + "一\n" + HEAD.format(2) + "二\n</doc>\n", ["二"], ["line 1: a block without its end"]),
        (
            HEAD.format(1) + "一\n</doc>\n三\n</doc>\n" + HEAD.format(2) + "二\n</doc>\n",
            ["一", "二"],
            ["line 4: text outside"],
        ),
        (HEAD.format(1) + "一\n</doc>\n</doc>\n", ["一"], ["line 4: text outside"]),
        (HEAD.format(1) + "一</doc>\n</doc>\n", ["一</doc>"], []),
        (HEAD.format(1) + "一\n</doc>\n\n三", ["一"], ["line 5: text outside"]),
    ],
)
def test_half_a_block_is_a_fault_and_the_whole_ones_stay(
    tmp_path: Path, text: str, kept: list[str], faults: list[str]
) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(text)
    found: list[Fault] = []
    reading = Reading(on_fault=found.append)
    pieces = cut(path, 1, "wikiextractor")
    assert [document.text.strip() for piece in pieces for document in read(piece, reading)] == kept
    told = [line.removeprefix(f"{path}, ") for line in tell(found)]
    assert [line[: len(start)] for line, start in zip(told, faults, strict=True)] == faults
    assert {fault.kind for fault in found} <= {"half block"}


LINES = ['<doc id="1" url="" title="题">', "</doc>", "</doc> ", " </doc>", "题", "文字", "", "&lt;", "</do", "\r"]


def slow_articles(text: str) -> tuple[list[str], int]:
    """Line by line: the texts between a header and the next `</doc>`, and how many half blocks there are."""
    articles, half, begun, stray = [], 0, None, False
    for number, line in enumerate(text.split("\n")):
        if line.startswith("<doc id="):
            half += begun is not None
            begun, stray = [], False
        elif number and re.fullmatch(r"</doc>[ \t\r]*", line):  # nothing ends in the first line
            if begun is None:
                half += not stray
            else:
                articles.append("\n".join(begun).strip())
            begun, stray = None, False
        elif begun is not None:
            begun.append(line)
        elif line.strip():
            half += not stray
            stray = True
    return [("" if text == "题" else decode_entities(text)) for text in articles], half + (begun is not None)


@given(lines=st.lists(st.sampled_from(LINES), max_size=25), size=st.integers(1, 200), block=st.integers(1, 40))
def test_cuts_and_blocks_change_no_article(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], size: int, block: int
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    monkeypatch.setattr("nezha_ds.corpus.inputs.BLOCK_BYTES", block)
    path = tmp_path / "wiki_00"
    path.write_bytes("\n".join(lines).encode())
    faults: list[Fault] = []
    reading = Reading("wikiextractor", on_fault=faults.append)
    found = [document.text.strip() for piece in cut(path, size, "wikiextractor") for document in read(piece, reading)]
    whole: list[Fault] = []
    assert found == [
        document.text.strip()
        for document in read(Piece(path, 0, None, 0, "wiki"), Reading("wikiextractor", on_fault=whole.append))
    ]
    assert faults == whole
    articles, half = slow_articles("\n".join(lines))
    assert (found, len(faults)) == (articles, half)


def test_an_article_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "wiki_00"
    path.write_text(HEAD.format(1) + "一行文字\n" * 300_000 + "</doc>\n" + HEAD.format(2) + "二\n</doc>\n")
    faults: list[Fault] = []
    found = [
        document.text.strip() for document in read(Piece(path, 0, None, 0, "wiki"), Reading(on_fault=faults.append))
    ]
    assert found == ["二"]
    assert [text.split(" in ")[0] for text in tell(faults)] == [f"{path}, line 1: no end of the document"]
