"""`'news/**/*.jsonl.gz'`, on this machine or behind a URI: files, never folders, in the order of their paths.

`*` and `[…]` stay inside one name, `**` stands for any depth, and what begins with a dot must be asked for by its dot,
as in a shell. `?` is one character of a path; in a URI it begins the parameters.
"""

import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from nezha_ds.corpus.location import pure
from nezha_ds.errors import DataError
from nezha_ds.remote import RemoteFile, is_remote, list_files, shown

_MAGIC, _REMOTE_MAGIC = "*?[", "*["


def has_magic(name: str) -> bool:
    """Whether a name is a glob rather than the file's own."""
    return any(mark in name for mark in (_REMOTE_MAGIC if is_remote(name) else _MAGIC))


def find_matches(pattern: str) -> list[Path]:
    """The files that match, by path; DataError when there are none."""
    found = {Path(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207 - Path's own takes hidden files
    if files := sorted(path for path in found if path.is_file()):
        return files
    if found:
        raise DataError(f"glob {pattern} matches folders only, such as {min(found)}; write {pattern.rstrip('/')}/**")
    raise DataError(f"glob {pattern} matches nothing in {Path.cwd()}; check it by `ls {pattern}`")


def find_remote_matches(pattern: str) -> list[RemoteFile]:
    """The files behind a URI that match, by path, found by listing what lies below its plain part; else DataError."""
    text, mark, parameters = pattern.partition("?")
    names = text.split("/")
    plain = next(number for number, name in enumerate(names) if has_magic(name))
    if plain < 3:  # s3: // bucket
        raise DataError(f"glob {shown(pattern)} does not name its bucket; write that out, what lies below may vary")
    root = "/".join(names[:plain])
    depth = len(shown(root).split("/"))
    found = sorted(list_files(root + mark + parameters), key=pure)
    files = [file for file in found if matches(shown(file.uri).split("/")[depth:], names[plain:])]
    if not files:
        raise DataError(f"glob {shown(pattern)} matches none of the {len(found):,} files below {shown(root)}; check it")
    return files


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path, as names, is what a glob, as names, stands for."""
    if not pattern:
        return not names
    first, *rest = pattern
    if first == "**":
        return matches(names, rest) or (bool(names) and not names[0].startswith(".") and matches(names[1:], pattern))
    shy = bool(names) and names[0].startswith(".") and not first.startswith(".")
    return bool(names) and not shy and fnmatchcase(names[0], first) and matches(names[1:], rest)
