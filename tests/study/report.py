"""Results as a page: what was done, tables of means and spreads, and what they say, word for word from the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from textwrap import fill

from tests.study.arms import ARMS, BASE, BATCH, FORMS, LENGTH, SPAN_ALONE, SPAN_BOTH
from tests.study.comparison import (
    BY_SIZE,
    QUESTIONS,
    Comparison,
    Measure,
    Question,
    Verdict,
    differences,
    spread,
    values,
    verdict,
)
from tests.study.harness import HELDOUT
from tests.study.plot import Panel, svg
from tests.study.training import LAMB, WARMUP, Result


@dataclass(frozen=True)
class Circumstances:
    """When, how and where the results were made."""

    form: str
    date: str
    command: str
    machine: str
    entries: int
    """Of the vocabulary."""
    entropy: float
    """Of single tokens, in nats."""


def page(results: Sequence[Result], told: Circumstances) -> str:
    """The whole of study.md."""
    parts = [_head(results, told)]
    parts += [_section(question, results) for question in asked(told)]
    return "\n\n".join(parts) + "\n"


def asked(told: Circumstances) -> list[Question]:
    """The questions of a form, each with the arms that the form has."""
    form = FORMS[told.form]
    return [
        replace(
            question,
            arms=tuple(arm for arm in question.arms if arm in form.arms),
            comparisons=tuple(one for one in question.comparisons if {one.first, one.second} <= set(form.arms)),
        )
        for question in QUESTIONS
    ]


def plot(results: Sequence[Result], told: Circumstances) -> str:
    """The whole of study.svg: of each question what is compared."""
    panels: list[Panel] = []
    for question in asked(told):
        for measure in dict.fromkeys(one.measure for one in question.comparisons):
            factor = 100 if measure.percent else 1
            rows = [
                (question.label(arm), [factor * value for value in values(results, arm, measure)])
                for arm in question.arms
            ]
            panels.append(Panel(f"{question.title}: {measure.title}", rows))
    return svg(panels, "A dot for each seed, a line at their mean")


def _head(results: Sequence[Result], told: Circumstances) -> str:
    form, model = FORMS[told.form], BASE["model"]
    hours = sum(result.seconds for result in results) / 3600
    title = "# Study: positions, masks, spans"
    made = (
        f"{told.date}, `{told.command}`; {len(results)} models, {hours:.1f} hours of one core for training; "
        f"{told.machine}."
    )
    picture = "![A dot for each seed, a line at their mean](study.svg)"
    setting = (
        f"The shipped novel and statutes with a vocabulary of their own ({told.entries:,} entries), {HELDOUT:.0%} of "
        f"the documents held out. Every model has {model['num_hidden_layers']} layers of width {model['hidden_size']} "
        f"and is trained on {tokens(results)} ({form.steps:,} steps of {BATCH} samples of {LENGTH}), none of which "
        f"comes twice, with LAMB at a rate of {LAMB.lr} after {WARMUP:.0%} of warm-up, falling to 0. Seeds "
        f"{', '.join(map(str, form.seeds))} decide first weights, order and masks; arms of one seed share all three "
        f"where they can. The entropy of single tokens is {told.entropy:.3f} nats."
    )
    reading = (
        "Numbers are means over seeds ± standard deviation. Arms are compared seed by seed; a difference counts when "
        "it has one sign in all seeds and its mean is more than twice its standard deviation, which is a rule of thumb "
        "and no test. All rows are in [study.json](study.json)."
    )
    return "\n\n".join([title, paragraph(made), picture, paragraph(setting), paragraph(reading)])


def tokens(results: Sequence[Result]) -> str:
    """How many an arm saw: by seed, since rows differ in length; the same for all arms of a seed."""
    by_seed = {seed: {one.tokens for one in results if one.seed == seed} for seed in {one.seed for one in results}}
    assert all(len(seen) == 1 for seen in by_seed.values()), "arms of one seed saw other samples"
    every = {one.tokens for one in results}
    return f"{min(every):,} tokens" if len(every) == 1 else f"{min(every):,} to {max(every):,} tokens, by seed,"


def paragraph(text: str) -> str:
    """Lines of 120, those of a list item indented."""
    return fill(
        text, 120, subsequent_indent="  " * text.startswith("- "), break_long_words=False, break_on_hyphens=False
    )


def _section(question: Question, results: Sequence[Result]) -> str:
    parts = [f"## {question.title}", paragraph(question.introduction), _table(question, results)]
    if SPAN_BOTH in question.arms:
        parts.append(_by_size(results))
    parts.append("\n".join(paragraph(f"- {sentence(question, one, results)}") for one in question.comparisons))
    return "\n\n".join(parts)


def _table(question: Question, results: Sequence[Result]) -> str:
    lines = ["| | " + " | ".join(measure.title for measure in question.measures) + " |"]
    lines.append("|---" * (len(question.measures) + 1) + "|")
    for arm in question.arms:
        cells = [shown(values(results, arm, measure), measure) for measure in question.measures]
        lines.append(f"| {question.label(arm)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_size(results: Sequence[Result]) -> str:
    """Recovery of spans by their tokens, how many there were, and what the span head itself recovers."""
    arms = (SPAN_ALONE, SPAN_BOTH)
    example = next(result for result in results if result.arm == SPAN_BOTH)
    counts = [total for _, total in example.views["spans"]["mlm"].recovered.values()]
    lines = [
        "| tokens in the span | how many | " + " | ".join(ARMS[arm].label for arm in arms) + " |",
        "|---|---|---|---|",
    ]
    for measure, count in zip(BY_SIZE, counts, strict=True):
        cells = [shown(values(results, arm, measure), measure) for arm in arms]
        lines.append(f"| {measure.title} | {count:,} | " + " | ".join(cells) + " |")
    head = Measure("", lambda result: result.views["spans"]["span"].share())
    own = shown(values(results, SPAN_BOTH, head), head)
    return "\n".join(lines) + f"\n\nThe span objective's own head recovers {own} % of all spans."


def shown(numbers: Sequence[float], measure: Measure) -> str:
    """Mean and spread."""
    return f"{measure.show(mean(numbers))} ± {measure.show(spread(numbers))}"


def sentence(question: Question, comparison: Comparison, results: Sequence[Result]) -> str:
    """What one comparison comes to, and whether the paper says the same."""
    gaps, measure = differences(results, comparison), comparison.measure
    found = verdict(gaps, more_is_better=measure.percent)
    first, second = question.label(comparison.first), question.label(comparison.second)
    size = f"{measure.show(mean(gaps), signed=True)} ± {measure.show(spread(gaps))}"
    unit = "points" if measure.percent else "nats"
    begin = f"**{measure.title.removesuffix(' %').capitalize()}**, {first} less {second}: {size} {unit}: "
    return begin + _ENDS[comparison.claimed][found].format(first=first, second=second)


_ENDS: dict[bool, dict[Verdict, str]] = {
    True: {
        "first": "{first} is better, as the paper has it.",
        "second": "{second} is better, **against the paper**.",
        "neither": "no difference that these seeds can tell, so **what the paper holds is not borne out here**.",
    },
    False: {
        "first": "{first} is better; the paper does not compare them so.",
        "second": "{second} is better; the paper does not compare them so.",
        "neither": "no difference that these seeds can tell; the paper does not compare them so.",
    },
}
