"""The only door to OpenCC: traditional characters become simplified ones.

`t2s` alone: characters, and phrases where one character has two simple forms (乾坤 stays, 乾燥 becomes 干燥), but no
words of Taiwan or Hong Kong for those of the mainland. Meant for traditional text: of the shipped novel, which is
simplified, it changes 6 characters in 10,000. Off unless asked for.

`opencc` is OpenCC itself (Apache-2.0, dictionaries too; last release 2026-08; wheels): 55 MB/s of UTF-8 on one core.
opencc-pyo3 is twice as fast with one maintainer's dictionaries, zhconv-rs three times but GPL, and
opencc-python-reimplemented, last released in 2023, 18 times slower.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nezha_ds.errors import LaunchError

CONVERSION = "t2s"


@dataclass(frozen=True)
class Simplifier:
    """A conversion, with what its results depend on. To be made in each process, not sent to it."""

    name: str
    """Library, version and conversion."""
    convert: Callable[[str], str]


def make_simplifier() -> Simplifier:
    """Load the dictionaries (3 ms); LaunchError when OpenCC is not installed."""
    try:
        import opencc

        module: Any = opencc
    except ImportError:
        raise LaunchError("simplify needs OpenCC, which is not installed; `pip install 'nezha-ds[clean]'`") from None
    return Simplifier(f"opencc/{module.__version__}/{CONVERSION}", module.OpenCC(CONVERSION).convert)
