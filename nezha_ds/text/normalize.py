"""The least cleaning that raw text needs, and no more.

Half a surrogate pair is refused. Then, in this order:

1. Every Unicode line break (CRLF, CR, NEL, VT, FF, LS, PS) becomes LF.
2. Control and format characters go: the other C0 and C1 controls, byte-order marks, soft hyphens, zero-width spaces and
   joiners, directional marks. BERT's tokenizer drops them anyway; here they would also cut words in two.
3. Every run of spaces (tab, no-break, ideographic, en, em, thin …) becomes one space, none beside a line break nor at
   either end of the text.

No NFKC: full-width Chinese punctuation (，：（）！？) has entries of its own in the vocabulary, and would become ASCII.
Idempotent. A few passes that mostly find nothing: 180 MB/s of Chinese UTF-8 on one core.
"""

import re

from nezha_ds.errors import DataError

NORMALISATION = "plain/1"
"""Name and version; raise the number with every change of a result, because shards depend on it."""

# Literal ranges, not unicodedata's categories, so that the result does not change with Python's Unicode version.
_LINE_BREAK = re.compile("[\r\v\f\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_OTHER_SPACE = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def normalize(text: str) -> str:
    """Clean text as the module describes; DataError for half a surrogate pair."""
    refuse_surrogates(text)
    text = _LINE_BREAK.sub("\n", text.replace("\r\n", "\n"))
    text = _OTHER_SPACE.sub(" ", _INVISIBLE.sub("", text))
    while "  " in text:  # a run of n spaces takes log2(n) rounds
        text = text.replace("  ", " ")
    return text.replace(" \n", "\n").replace("\n ", "\n").strip(" ")


def refuse_surrogates(text: str) -> None:
    """DataError when the text has a lone surrogate, which no encoding of Unicode can hold; 2 GB/s."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise surrogate_error(text, error.start) from None


def surrogate_error(text: str, place: int) -> DataError:
    """What a lone surrogate at `place` means to the user."""
    return DataError(
        f"character {place} of the text is half a surrogate pair (U+{ord(text[place]):04X}), which is not Unicode; "
        "decode the source strictly (UTF-8 or UTF-16), or with errors='replace'"
    )
