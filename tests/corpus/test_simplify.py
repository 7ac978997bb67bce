"""Traditional text becomes simplified before anything looks at it, by a named library, or not at all."""

import json
import sys
from itertools import islice
from pathlib import Path

import opencc
import pytest

from nezha_ds.corpus.clean import Candidate, Cleaner, CleanSettings
from nezha_ds.corpus.inputs import find_files
from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.corpus.sources import Piece, Reading, read
from nezha_ds.errors import ConfigError, LaunchError
from nezha_ds.shards import read_manifest
from nezha_ds.text.simplify import make_simplifier


def test_phrases_decide_what_a_character_becomes() -> None:
    simplifier = make_simplifier()
    assert simplifier.name == f"opencc/{opencc.__version__}/t2s"
    assert simplifier.convert("乾坤已定，氣候乾燥；皇后頭髮很長，後來發財著名著作。") == (
        "乾坤已定，气候干燥；皇后头发很长，后来发财著名著作。"
    )
    assert simplifier.convert("") == ""
    assert simplifier.convert("a\n𠀀 😀,\n") == "a\n𠀀 😀,\n"


def test_the_shipped_statutes_come_back_from_traditional() -> None:
    path = find_files(["embedded"])[1]
    text = "\n".join(document.text for document in islice(read(Piece(path, 0, None, 0), Reading()), 300))
    traditional = opencc.OpenCC("s2t").convert(text)
    assert sum(one != other for one, other in zip(text, traditional, strict=True)) > len(text) / 5
    back = make_simplifier().convert(traditional)
    assert sum(one != other for one, other in zip(text, back, strict=True)) < len(text) / 10_000


def test_it_comes_before_boilerplate_and_predicates() -> None:
    clean = Cleaner(CleanSettings(boilerplate=("责任编辑.*",)), make_simplifier().convert)
    raw = " 這是正文。\n責任編輯：張三\u200b"
    assert clean(raw) == Candidate(raw, "这是正文。", None, 1)
    assert Cleaner(CleanSettings(boilerplate=("责任编辑.*",)))(raw).removed_lines == 0


def test_it_comes_before_duplicates_and_is_part_of_the_identity(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("漢字簡化。\n\n汉字简化。\n\n別的文章。")

    def run(name: str, **settings: bool) -> str:
        prepare(
            PrepareSettings(inputs=(str(source),), out=tmp_path / name, workers=1, deduplicate=True, **settings),
            progress=False,
        )
        return read_manifest(tmp_path / name).normalisation

    assert run("plain") == "plain/1"
    assert run("simple", simplify=True) == f"plain/1 {make_simplifier().name}"
    kept = [json.loads((tmp_path / name / "report.json").read_bytes())["kept"] for name in ("plain", "simple")]
    assert kept == [3, 2]
    with pytest.raises(ConfigError, match=r"different: normalisation\)"):
        run("simple")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(LaunchError, match=r"simplify needs OpenCC, .*`pip install 'nezha-ds\[clean\]'`"):
        prepare(PrepareSettings(out=tmp_path, simplify=True), progress=False)
