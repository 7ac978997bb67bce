"""`nezha-ds vocab`: a vocabulary of the user's own text, read and cleaned as a preparation reads and cleans it.

Workers count the words of one task each; the counts are added up in the order of the tasks, so any number of processes
gives the same file. A worker and the sum keep at most a million words each, however much text there is. Then
one of `text.train_vocab` makes the file, in seconds.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from rich.console import Console

from nezha_ds.corpus.encode import Work, texts
from nezha_ds.corpus.executor import Pool
from nezha_ds.corpus.faults import Faults, stop, tell
from nezha_ds.corpus.prepare import Start, divide, with_workers
from nezha_ds.corpus.progress import watched
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.files import make_folder, write_atomically
from nezha_ds.text.byte_bpe import BYTE_OF, ORDER, parse_byte_vocabulary
from nezha_ds.text.tokenizer import LONGEST_WORD
from nezha_ds.text.train_vocab import TRAINERS, units_of
from nezha_ds.text.vocab import SPECIAL_TOKENS, Vocabulary, parse_vocabulary
from nezha_ds.text.words import COUNTERS, KEPT, prune

AT_ONCE = 32
"""Tasks whose counts are waited for together, so that the memory they take has a bound."""
OF_TASK = 1 << 17
"""Words that a task keeps when it has twice as many: those that come after are as rare as one in 100,000 words."""


class VocabularySettings(PrepareSettings):
    """What to read, as for a preparation, and what to make of it. `out` is a file here."""

    kind: Literal["bert-wordpiece", "byte-bpe", "words"] = "bert-wordpiece"
    """A vocab.txt of characters and pieces of words, as BERT's; a tokenizer.json of byte-level BPE, as RoBERTa's; or a
    vocab.txt of whole words, for text of anonymised ids."""
    size: int = Field(default=21128, ge=16)
    """Entries, special tokens included. Less when the text does not have so many."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a character, a pair or a word must occur to become an entry."""
    alphabet: int | None = Field(default=None, ge=1)
    """Most characters, counting `a` and `##a` apart; unset: two thirds of the size, and what pieces of words leave."""
    special: tuple[str, ...] = ()
    """Further special tokens, after the five that are always there: `[NAME]`, for `byte-bpe` `<name>`. No text becomes
    one; they are kept for fine-tuning."""

    @model_validator(mode="after")
    def _fits(self) -> "VocabularySettings":
        least = len(SPECIAL_TOKENS) + len(self.special) + (len(BYTE_OF) if self.kind == "byte-bpe" else 1)
        if self.size < least:
            raise ValueError(f"size = {self.size} is too small for {self.kind}; take {least} or more")
        if self.alphabet and self.kind != "bert-wordpiece":
            raise ValueError(f"{self.kind} has no alphabet to limit; leave it out, or take bert-wordpiece")
        if self.user_dictionary and self.kind != "byte-bpe":
            raise ValueError(f"{self.kind} does not look for words; leave {self.user_dictionary} out, or take byte-bpe")
        left, right, own = ("<", ">", ORDER) if self.kind == "byte-bpe" else ("[", "]", SPECIAL_TOKENS)
        for number, token in enumerate(self.special):
            if not (token[:1] == left and token[-1:] == right and len(token) > 2) or " " in token:
                raise ValueError(f"special token {token!r} is not of the form {left}NAME{right}; write it so")
            if token in (*own, *self.special[:number]):
                raise ValueError(f"special token {token!r} is there already; leave it out")
        return self


@dataclass(frozen=True)
class Task:
    """The words of one piece of work, to be counted."""

    work: Work
    kind: str

    @property
    def size(self) -> int:
        """About how many bytes of text it holds."""
        return self.work.size


def count(task: Task) -> tuple[Counter[str], Faults]:
    """How often each word occurs, and what was broken; DataError names file and line of what is wrong."""
    job, faults = task.work.job, Faults()
    counter = COUNTERS[task.kind](job.lowercase, job.segmenter, job.user_dictionary)
    for text in texts(task.work, faults):
        counter.add(text)
    words = counter.words()
    prune(words, OF_TASK)
    return words, faults


def train_vocabulary(settings: VocabularySettings, progress: bool = True) -> Vocabulary:
    """Write the vocabulary of a text to `settings.out`.

    ConfigError when the file is there already; DataError for unreadable input, unless such is skipped, and for text
    that has too little to make a vocabulary of; LaunchError when the file cannot be written.
    """
    if settings.out.is_dir():
        raise ConfigError(f"{settings.out} is a folder; name the file to write, such as {settings.out / 'vocab.txt'}")
    if settings.out.exists() and not settings.overwrite:
        raise ConfigError(f"{settings.out} is there already; choose another name, or replace it with --overwrite")
    with tempfile.TemporaryDirectory() as exchange:
        return with_workers(settings, Path(exchange), lambda start: _train(settings, progress, start))


def _train(settings: VocabularySettings, progress: bool, start: Start) -> Vocabulary:
    faults = Faults()
    works = divide(settings, faults if settings.on_error == "skip" else stop)
    tasks = [Task(work, settings.kind) for work in works]
    make_folder(settings.out.parent)
    with start(len(tasks)) as pool, watched("count", sum(task.size for task in tasks), pool.gauge.read, progress):
        words, of_tasks = _add_up(pool, tasks)
    _tell_faults([faults, *of_tasks])
    if not words:
        inputs = (name for source in settings.all_sources() for name in source.without_keys().inputs)
        raise DataError(f"no document is left of {', '.join(inputs)}; give more text")
    console = Console(stderr=True, soft_wrap=True, quiet=not progress)
    with console.status(f"training on {len(words):,} words"):
        data = TRAINERS[settings.kind](
            words, settings.size, settings.min_frequency, settings.alphabet, settings.special
        )
    parse = parse_byte_vocabulary if settings.kind == "byte-bpe" else parse_vocabulary
    vocabulary = parse(data, str(settings.out))
    write_atomically(settings.out, data)
    console.print(_summary(settings, vocabulary, words))
    return vocabulary


def _add_up(pool: Pool, tasks: Sequence[Task]) -> tuple[Counter[str], list[Faults]]:
    """The words of all tasks, added in their order, and what was broken in each."""
    words: Counter[str] = Counter()
    faults: list[Faults] = []
    for first in range(0, len(tasks), AT_ONCE):
        for counted, of_task in pool.run(count, tasks[first : first + AT_ONCE]):
            words.update(counted)
            prune(words, KEPT)
            faults.append(of_task)
    return words, faults


def _tell_faults(faults: Sequence[Faults]) -> None:
    counts = sum((some.counts for some in faults), Counter[str]())
    if counts:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts.items()))
        first = [fault for some in faults for fault in some.first][:5]
        lines = [f"faults of the input passed over: {kinds}", *tell(first)]
        print("\n".join(lines), file=sys.stderr)  # noqa: T201 - also without a progress bar


def _summary(settings: VocabularySettings, vocabulary: Vocabulary, words: Counter[str]) -> str:
    few = (
        "" if len(vocabulary) == settings.size else f" (the text has no more that occur {settings.min_frequency} times)"
    )
    total = sum(words.values())
    share = _known(settings.kind, vocabulary, words) / total
    return (
        f"{settings.out} has {len(vocabulary):,} entries{few}: {share:.3%} of {total:,} words can be written with them"
    )


def _known(kind: str, vocabulary: Vocabulary, words: Counter[str]) -> int:
    """How many of the words are sure not to be unknown: entries, or words whose every character is one."""
    if kind == "byte-bpe":
        return sum(words.values())
    ids = vocabulary.ids.keys()
    short = ((word, number) for word, number in words.items() if len(word) <= LONGEST_WORD)
    return sum(number for word, number in short if word in ids or ids >= set(units_of(word)))
