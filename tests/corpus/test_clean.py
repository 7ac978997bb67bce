"""Each predicate against a count by hand."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.corpus.clean import CleanSettings, characters, chinese_share, first_failed, predicates


@given(st.text())
def test_shares_equal_a_slow_count(text: str) -> None:
    visible = [character for character in text if not character.isspace()]
    assert characters(text) == len(visible)
    # The blocks are cut at their ends, where unassigned code points have no name: only named ones are compared.
    named = [unicodedata.name(character, "").startswith("CJK UNIFIED") for character in visible]
    assert chinese_share(text) >= sum(named) / max(1, len(visible)) - 1e-9 or any(ord(c) > 0x2CEAF for c in visible)


def test_only_empty_documents_go_by_default() -> None:
    chosen = predicates(CleanSettings())
    assert first_failed(" \n ", chosen) == "empty"
    assert first_failed("a", chosen) is None


def test_the_first_failed_predicate_is_named() -> None:
    chosen = predicates(CleanSettings(min_characters=4, min_chinese=0.5))
    assert first_failed("一二 三", chosen) == "too short"
    assert first_failed("一bcd", chosen) == "not Chinese"
    assert first_failed("一二c d", chosen) is None
    assert chinese_share("") == 0
    assert chinese_share("𠀀a，１") == 0.25
