"""What the numbers say, in sentences that are computed from them: comparisons, reach, and the rule against other rates.

Models with the same seed saw the same samples from the same first weights, so they are compared seed by seed. A
difference counts by the other study's rule of thumb: one sign in all seeds, and a mean above twice its deviation.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, isinf
from statistics import mean

from tests.study.batch.arms import ADAMW, LAMB, LARGEST, OPTIMIZERS, SMALLEST, SWEPT, WITHOUT_RATIO, Form, square_root
from tests.study.batch.sweep import Results, base_rates, best, height
from tests.study.batch.training import Result
from tests.study.comparison import Verdict, verdict

PAIRS = ((LAMB, WITHOUT_RATIO), (LAMB, ADAMW), (WITHOUT_RATIO, ADAMW))
"""Who is compared with whom."""
Losses = list[float | None]


def swept() -> list[str]:
    """The optimizers that have a sweep of their own."""
    return list(dict.fromkeys(SWEPT.values()))


def losses(results: Sequence[Result], optimizer: str, batch: int) -> Losses:
    """One a seed, none where the training diverged."""
    return [one.loss for one in results if one.optimizer == optimizer and one.batch == batch]


def differences(first: Losses, second: Losses) -> list[float] | None:
    """First less second, seed by seed, in thousandths of a nat as it is shown; none where one diverged."""
    pairs = list(zip(first, second, strict=True))
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return [round(one - other, 3) for one, other in known] if len(known) == len(pairs) else None


def compare(first: Losses, second: Losses) -> Verdict:
    """Whose loss is lower. Who diverged in more of the seeds has lost."""
    gaps = differences(first, second)
    if gaps is not None:
        return verdict(gaps, more_is_better=False)
    lost, won = first.count(None), second.count(None)
    return "neither" if lost == won else "second" if lost > won else "first"


def sentences(results: Results, form: Form, entropy: float) -> list[str]:
    """Everything that is said."""
    return [
        *(_pair(results, form, first, second) for first, second in PAIRS),
        *(_reach(results, form, entropy, optimizer) for optimizer in OPTIMIZERS),
        *(_rule(results, form, optimizer) for optimizer in swept()),
        _at_their_best(results),
    ]


def _pair(results: Results, form: Form, first: str, second: str) -> str:
    """At which batches the first is better, worse, neither."""
    found = {
        batch: compare(losses(results.table, first, batch), losses(results.table, second, batch))
        for batch in form.batches
    }
    words: dict[Verdict, str] = {
        "first": "lower loss at {}",
        "second": "higher loss at {}",
        "neither": "no difference that counts at {}",
    }
    parts = [
        words[kind].format(_numbers(batch for batch in form.batches if found[batch] == kind))
        for kind in words
        if kind in found.values()
    ]
    return f"**{OPTIMIZERS[first]}, beside {OPTIMIZERS[second]}**: {'; '.join(parts)}."


def _reach(results: Results, form: Form, entropy: float, optimizer: str) -> str:
    """How far an optimizer comes, and where it loses most."""
    means = {batch: _mean(losses(results.table, optimizer, batch)) for batch in form.batches}
    counting = [batch for batch, loss in means.items() if loss >= entropy]
    learned = f"better than counting tokens at every batch, by {entropy - max(means.values()):.3f} nats at the worst"
    if counting:
        learned = f"no better than counting tokens at {_numbers(counting)}"
    finite = [batch for batch in form.batches if not isinf(means[batch])]
    lost = {pair: means[pair[1]] - means[pair[0]] for pair in pairwise(finite)}
    steepest = max(lost, key=lambda pair: lost[pair])
    diverged = [batch for batch in form.batches if isinf(means[batch])]
    return (
        f"**{OPTIMIZERS[optimizer]}** is {learned}; it loses most from {steepest[0]:,} to {steepest[1]:,}, "
        f"{lost[steepest]:+.3f} nats{f', and diverges at {_numbers(diverged)}' if diverged else ''}."
    )


def _rule(results: Results, form: Form, optimizer: str) -> str:
    """What the rule loses, at the largest batch, to the best of the rates that were tried."""
    label = OPTIMIZERS[optimizer]
    base = base_rates(results.base)[optimizer]
    begin = f"**{label}'s rate**: {base:g} is the best at {SMALLEST}{_edge(base, form.rates)}; at {LARGEST} "
    rule = at(results.largest, optimizer, square_root(base, LARGEST))
    found = best(results.largest, optimizer)
    if found == rule:
        return f"{begin}the rule's is the best of those that were tried."
    rates = [one.rate for one in results.largest if one.optimizer == optimizer]
    multiple = form.multiples[rates.index(found.rate)]
    return (
        f"{begin}{multiple:g} times the rule's{_edge(found.rate, rates)}, with which the loss is "
        f"{height(rule) - height(found):.3f} nats lower."
    )


def _at_their_best(results: Results) -> str:
    first, second = (height(best(results.largest, name)) for name in (LAMB, ADAMW))
    return f"**Each with the best of its rates at {LARGEST}**, LAMB less AdamW: {first - second:+.3f} nats; one seed."


def at(results: Sequence[Result], optimizer: str, rate: float) -> Result:
    """An optimizer's model with the rate that is nearest: rows are rounded to six digits."""
    return min((one for one in results if one.optimizer == optimizer), key=lambda one: abs(one.rate - rate))


def _edge(chosen: float, tried: Sequence[float]) -> str:
    return " (the edge of what was tried)" if chosen in (tried[0], tried[-1]) else ""


def _mean(values: Losses) -> float:
    return mean(inf if value is None else value for value in values)


def _numbers(batches: Iterable[int]) -> str:
    return ", ".join(f"{batch:,}" for batch in batches)
