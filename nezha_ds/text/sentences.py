"""Where sentences begin, in Chinese and in Western punctuation.

A sentence ends with its line, or after end marks and the closing quotes and brackets that follow them:

- 。！？｡ and … always; ! and ? unless a Latin letter, a digit or = follows (`a?b=1`, `!=`);
- a full stop only before white space, a closing mark or the end, and not after a single letter or digit, so that 3.14,
  U.S., J. Smith and `1. Purpose` stay whole (Mr. Smith does not: that takes a list for each language).
- ； does not end one: it joins the clauses of one statement, and in lists and statutes a line break follows it anyway.

Marks before a comma or a colon end nothing, so no sentence begins with one (“走！”，他说). A straight quote after an
end mark opens the next sentence when its line has an even number of them before it and no white space follows.

One regex pass: 190 MB/s of Chinese UTF-8.
"""

import re

import numpy as np
from numpy.typing import NDArray

_MARKS = "。！？｡…!?."
_CLOSERS = r"”’」』）】》〉］\])\"'"
# Possessive, so that a comma that must not follow is not avoided by giving a mark or a closing quote back. It begins
# with one plain class because the regex engine looks for that at 1 GB/s, and for an alternation at 50 MB/s.
_END = re.compile(
    rf"""
    [\n{_MARKS}]
    (?: (?<=\n)
      | (?<! [{_MARKS}][{_MARKS}] )  # only from the first of a run, or a line of dots would take quadratic time
        [{_MARKS}]*+
        (?! (?<=[!?]) [A-Za-z0-9=] )
        (?! (?<=\.) [^\s{_CLOSERS}] )
        (?<! \b\w\. )
        (?P<closers> [{_CLOSERS}]*+ )
        (?! [，、；：,;:] )
    )
    \s*+
    """,
    re.VERBOSE,
)


def sentence_starts(text: str) -> NDArray[np.int64]:
    """(S,) char offsets at which sentences begin, ascending, each at a character that is not blank.

    A sentence runs to the next start; what stands before the first start is blank. Empty for blank text.
    """
    starts = [len(text) - len(text.lstrip())]
    is_open, checked = False, 0
    for match in _END.finditer(text):
        start = match.end()
        begin, end = match.span("closers")
        if begin < end == start < len(text) and '"' in match["closers"]:
            is_open, checked = _inside_quotes(text, checked, begin, is_open), begin
            start = _opening_quote(text, begin, end, is_open) or start
        if starts[-1] < start:
            starts.append(start)
    return np.array([start for start in starts if start < len(text)], dtype=np.int64)


def _inside_quotes(text: str, begin: int, end: int, is_open: bool) -> bool:
    """Whether a straight quote is open at `end`, if one was or was not at `begin`. A line break closes all."""
    line = text.rfind("\n", begin, end)
    if line >= 0:
        begin, is_open = line, False
    return is_open ^ (text.count('"', begin, end) % 2 == 1)


def _opening_quote(text: str, begin: int, end: int, is_open: bool) -> int | None:
    """Where among closing marks a straight quote stands that opens the next sentence, if one does."""
    quotes = [place for place in range(begin, end) if text[place] == '"']
    opening = quotes[1:] if is_open else quotes
    return opening[0] if opening else None
