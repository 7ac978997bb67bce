"""Three questions, each a table of arms by measures and a list of comparisons; and what a comparison comes to.

Arms with the same seed saw the same samples in the same order from the same first weights, so they are compared seed by
seed. A difference counts when it has one sign in all seeds and its mean is more than twice its standard deviation: a
rule of thumb for two or three seeds, not a test. What does not count is told as such, also where the paper says more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, stdev
from typing import Literal

from tests.study.arms import ARMS, CHARACTERS, LENGTH, LONGER, SPAN_ALONE, SPAN_BOTH, WORDS
from tests.study.measure import SIZES
from tests.study.training import Result

Verdict = Literal["first", "second", "neither"]


@dataclass(frozen=True)
class Measure:
    """A number that a result has."""

    title: str
    of: Callable[[Result], float]
    percent: bool = True
    """Otherwise nats, of which fewer are better."""

    def show(self, value: float, signed: bool = False) -> str:
        """As it is written in tables."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.3f}"


@dataclass(frozen=True)
class Comparison:
    """Two arms that are compared in one measure."""

    first: str
    second: str
    measure: Measure
    claimed: bool = False
    """Whether the paper holds the first to be better."""


@dataclass(frozen=True)
class Question:
    """A part of the study."""

    title: str
    introduction: str
    """What is asked, and what the paper says."""
    arms: tuple[str, ...]
    measures: tuple[Measure, ...]
    comparisons: tuple[Comparison, ...]
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """Of arms that are called otherwise here."""

    def label(self, arm: str) -> str:
        """What an arm is called here."""
        return self.labels.get(arm, ARMS[arm].label)


def _loss(view: str, title: str) -> Measure:
    return Measure(title, lambda result: result.views[view]["mlm"].loss, percent=False)


def _accuracy(view: str, title: str) -> Measure:
    return Measure(title, lambda result: result.views[view]["mlm"].accuracy)


def _recovery(view: str, title: str, least: int = 1, head: str = "mlm") -> Measure:
    return Measure(title, lambda result: result.views[view][head].share(least))


def _of_size(size: int, title: str) -> Measure:
    def share(result: Result) -> float:
        right, total = result.views["spans"]["mlm"].recovered[size]
        return right / total

    return Measure(title, share)


LOSS, LONGER_LOSS = _loss("as-trained", "loss"), _loss("longer", f"loss at {LONGER}")
WORD_RECOVERY = _recovery("words", "whole words of two or more, recovered %", least=2)
CHARACTER_RECOVERY = _accuracy("characters", "single characters, recovered %")
SPAN_RECOVERY = _recovery("spans", "all spans, recovered %")
SPANS_OF_TWO = _recovery("spans", "spans of two or more, recovered %", least=2)
BY_SIZE = (
    *(_of_size(size, f"{size} to {end - 1}" if end - size > 1 else f"{size}") for size, end in pairwise(SIZES)),
    _of_size(SIZES[-1], f"{SIZES[-1]} and more"),
)

POSITIONS = (WORDS, "functional-relative-unclipped", "learned-relative", "functional-absolute", "learned-absolute")
IN_THE_ABLATION = {"learned-relative", "learned-absolute"}

QUESTIONS = (
    Question(
        "Positions",
        f"Whole words are masked; relative positions are clipped at {LENGTH // 2} where they are clipped. The same "
        f"held-out text is then cut into samples of {LONGER} tokens, four times what was trained on. The paper's "
        "ablation (news, length 128, CMRC2018): functional relative 65.95 EM and 86.46 F1, learned relative 65.26 and "
        "86.17, learned absolute 37.96 and 58.40.",
        POSITIONS,
        (LOSS, _accuracy("as-trained", "accuracy %"), LONGER_LOSS, _accuracy("longer", f"accuracy at {LONGER} %")),
        tuple(
            Comparison(WORDS, other, measure, claimed=other in IN_THE_ABLATION)
            for measure in (LOSS, LONGER_LOSS)
            for other in POSITIONS[:0:-1]
        ),
    ),
    Question(
        "Whole words or characters",
        "Both models are asked both: whole words, all of whose pieces are masked and have to be right, and single "
        "characters. Every chosen token becomes [MASK]. In the paper the model of whole words is better in F1 on "
        "CMRC2018, on LCQMC, PD-NER and ChnSenti (dev), and worse in EM and on XNLI.",
        (WORDS, CHARACTERS),
        (
            WORD_RECOVERY,
            _accuracy("words", "their pieces, accuracy %"),
            _loss("words", "loss on them"),
            CHARACTER_RECOVERY,
            _loss("characters", "loss on them"),
        ),
        (
            Comparison(WORDS, CHARACTERS, WORD_RECOVERY, claimed=True),
            Comparison(WORDS, CHARACTERS, CHARACTER_RECOVERY),
        ),
        {WORDS: "whole words masked"},
    ),
    Question(
        "The span objective",
        "Spans are SpanBERT's; one counts as recovered when all of its tokens are right. The MLM head is asked, "
        "which both have; every chosen token becomes [MASK]. In the paper the model of spans is better on CMRC2018, "
        "which asks for spans (68.47 EM and 88.57 F1, against 67.07 and 86.35 without), and worse on the other tasks.",
        (SPAN_ALONE, SPAN_BOTH),
        (SPAN_RECOVERY, SPANS_OF_TWO, _accuracy("spans", "their tokens, accuracy %"), _loss("spans", "loss on them")),
        (
            Comparison(SPAN_BOTH, SPAN_ALONE, SPAN_RECOVERY, claimed=True),
            Comparison(SPAN_BOTH, SPAN_ALONE, SPANS_OF_TWO, claimed=True),
        ),
    ),
)


def values(results: Sequence[Result], arm: str, measure: Measure) -> list[float]:
    """One number a seed."""
    return [measure.of(result) for result in results if result.arm == arm]


def spread(numbers: Sequence[float]) -> float:
    """Standard deviation over the seeds."""
    return stdev(numbers)


def differences(results: Sequence[Result], comparison: Comparison) -> list[float]:
    """First less second, seed by seed."""
    first, second = (values(results, arm, comparison.measure) for arm in (comparison.first, comparison.second))
    return [one - other for one, other in zip(first, second, strict=True)]


def verdict(gaps: Sequence[float], more_is_better: bool) -> Verdict:
    """Which arm is better, by the rule above; `gaps` are first less second."""
    one_sign = min(gaps) > 0 or max(gaps) < 0
    if not one_sign or abs(mean(gaps)) <= 2 * spread(gaps):
        return "neither"
    return "first" if (mean(gaps) > 0) == more_is_better else "second"
