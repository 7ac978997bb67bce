"""Results as a page: what was done, what it says, and the tables of means and spreads; and as a plot."""

from collections.abc import Sequence
from statistics import mean

from tests.study.batch.arms import FORMS, LARGEST, LARGEST_WARMUP, LENGTH, OPTIMIZERS, SMALLEST, Form, square_root
from tests.study.batch.curves import COLOURS, Curve, Panel, svg
from tests.study.batch.reading import PAIRS, Losses, at, compare, differences, losses, sentences, swept
from tests.study.batch.sweep import Results, base_rates, best
from tests.study.batch.training import BETAS, CLIP, DECAY, EPS, Result
from tests.study.comparison import spread
from tests.study.harness import HELDOUT
from tests.study.report import Circumstances, paragraph

COLOUR = dict(zip(OPTIMIZERS, COLOURS, strict=True))
DESCRIPTION = "A dot for each seed, a line through their means"
_LIMITS = (
    "How far this carries: a model of a few hundred thousand parameters and {tokens:.1f} million tokens, of which the "
    "largest batch makes {steps} steps. It shows how the optimizers behave where steps become few; it says nothing of "
    "32,768 samples a step with a model of a hundred million parameters, for which the papers are the evidence."
)


def page(results: Results, told: Circumstances) -> str:
    """The whole of study-batch.md."""
    form = FORMS[told.form]
    parts = [
        *_head(results, told, form),
        "## What it says",
        "\n".join(paragraph(f"- {one}") for one in sentences(results, form, told.entropy)),
        paragraph(_LIMITS.format(steps=form.samples // LARGEST, tokens=results.table[0].tokens / 1e6)),
        "## Held-out loss by batch",
        _table(results, form),
        "Seed by seed, in nats, and whose loss is lower:",
        _differences(results, form),
        "What a batch costs over the smallest one, seed by seed, in nats:",
        _costs(results, form),
        f"## The sweep for the base rates, at a batch of {SMALLEST}",
        _base_sweep(results, form),
        f"## Other rates at a batch of {LARGEST}",
        paragraph(
            "Is it the optimizer or the rule that does not carry so far? Multiples of the rule's rate, one seed."
        ),
        _largest_sweep(results, form),
    ]
    return "\n\n".join(parts) + "\n"


def plot(results: Results, told: Circumstances) -> str:
    """The whole of study-batch.svg: loss by batch, and by rate at both ends."""
    form = FORMS[told.form]
    by_batch = [
        Curve(label, COLOUR[name], [(batch, losses(results.table, name, batch)) for batch in form.batches])
        for name, label in OPTIMIZERS.items()
    ]
    return svg(
        [
            Panel("Held-out loss, rates by the square-root rule", "samples in a step", by_batch),
            Panel(f"Batch {SMALLEST}: the sweep for the base rates", "learning rate", _by_rate(results.base)),
            Panel(f"Batch {LARGEST}: the rule's rate and others", "learning rate", _by_rate(results.largest)),
        ],
        DESCRIPTION,
    )


def shown(values: Losses) -> str:
    """Mean and spread, or how many diverged."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged ({len(values) - len(known)} of {len(values)})"
    return f"{mean(known):.3f} ± {spread(known):.3f}"


def _by_rate(results: Sequence[Result]) -> list[Curve]:
    return [
        Curve(OPTIMIZERS[name], COLOUR[name], [(one.rate, [one.loss]) for one in results if one.optimizer == name])
        for name in swept()
    ]


def _head(results: Results, told: Circumstances, form: Form) -> list[str]:
    hours = sum(result.seconds for result in results.all) / 3600
    example = results.table[0]
    made = (
        f"{told.date}, `{told.command}`; {len(results.all)} models, {hours:.1f} hours of one core for training; "
        f"{told.machine}."
    )
    setting = (
        f"The shipped novel and statutes with a vocabulary of their own ({told.entries:,} entries), {HELDOUT:.0%} of "
        f"the documents held out. Every model has 2 layers of width 64, {example.parameters:,} parameters, and is "
        f"trained on {form.samples:,} samples of {LENGTH} tokens with whole words masked, none of which comes twice; "
        f"with one seed they are the same samples in the same order with the same masks at every batch. Seeds "
        f"{', '.join(map(str, form.seeds))}. A larger batch has fewer steps: that is the price, and what is asked is "
        "how little of it an optimizer pays."
    )
    claims = (
        "The LAMB paper (arXiv 1904.00962) holds that the ratio lets the batch of BERT grow from 512 to 32,768 by this "
        "rule, with hardly any tuning and without loss. A later one (arXiv 2102.06356) holds that AdamW comes as far "
        "when it is tuned at each batch."
    )
    optimizers = (
        f"LAMB is this package's with its defaults, AdamW is torch's, and LAMB without the ratio is ours with "
        f"`min_coeff` and `max_coeff` 1. All have betas {BETAS[0]} and {BETAS[1]}, eps {EPS:g}, decay {DECAY} but for "
        f"biases and LayerNorms, gradients clipped to a norm of {CLIP:g}. The rate grows with the square root of the "
        f"batch from one base value an optimizer, which was chosen at a batch of {SMALLEST} with a seed that the table "
        "does not use. With a ratio of 1 LAMB's update is AdamW's: the two have one base value, and their difference "
        f"shows whether that is so. Warm-up takes {LARGEST_WARMUP:.0%} of the steps at a batch of {LARGEST} and in "
        "proportion fewer below, so as many steps everywhere, as in the LAMB paper from 1/320 at 512 to 1/5 at 32,768, "
        "64 times as much; then the rate falls linearly to 0."
    )
    reading = (
        "Numbers are means over seeds ± standard deviation, in nats. A difference counts when it has one sign in all "
        "seeds and its mean is more than twice its standard deviation, a rule of thumb and no test. The entropy of "
        f"single tokens is {told.entropy:.3f} nats: a model that is no better has learned to count. All rows are in "
        "[study-batch.json](study-batch.json)."
    )
    title = "# Study: batches, LAMB, and its ratio"
    picture = f"![{DESCRIPTION}](study-batch.svg)"
    return [title, paragraph(made), picture, *map(paragraph, (claims, setting, optimizers, reading))]


def _rows(lines: Sequence[Sequence[str]]) -> str:
    """A table, its first line being the head."""
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def _table(results: Results, form: Form) -> str:
    bases = base_rates(results.base)
    rates_of = [f"rate of {OPTIMIZERS[name]}" for name in swept()]
    lines = [["batch", "steps", "of warm-up", *rates_of, *OPTIMIZERS.values()]]
    for batch in form.batches:
        example = next(one for one in results.table if one.batch == batch)
        rates = [f"{square_root(bases[name], batch):.4g}" for name in swept()]
        cells = [shown(losses(results.table, name, batch)) for name in OPTIMIZERS]
        lines.append([f"{batch:,}", f"{example.steps:,}", f"{example.warmup:,}", *rates, *cells])
    return _rows(lines)


def _differences(results: Results, form: Form) -> str:
    lines = [["batch", *(f"{OPTIMIZERS[first]} less {OPTIMIZERS[second]}" for first, second in PAIRS)]]
    for batch in form.batches:
        cells = [_compared(first, second, *_of(results, batch, first, second)) for first, second in PAIRS]
        lines.append([f"{batch:,}", *cells])
    return _rows(lines)


def _of(results: Results, batch: int, *optimizers: str) -> list[Losses]:
    return [losses(results.table, optimizer, batch) for optimizer in optimizers]


def _compared(first: str, second: str, one: Losses, other: Losses) -> str:
    whose = {"first": OPTIMIZERS[first], "second": OPTIMIZERS[second], "neither": "no difference that counts"}
    gaps = differences(one, other)
    size = "diverged" if gaps is None else f"{mean(gaps):+.3f} ± {spread(gaps):.3f}"
    return f"{size}: {whose[compare(one, other)]}"


def _costs(results: Results, form: Form) -> str:
    lines = [["batch", *OPTIMIZERS.values()]]
    for batch in form.batches[1:]:
        cells: list[str] = []
        for name in OPTIMIZERS:
            gaps = differences(losses(results.table, name, batch), losses(results.table, name, form.batches[0]))
            cells.append("diverged" if gaps is None else f"{mean(gaps):+.3f} ± {spread(gaps):.3f}")
        lines.append([f"{batch:,}", *cells])
    return _rows(lines)


def _base_sweep(results: Results, form: Form) -> str:
    lines = [["rate", *(OPTIMIZERS[name] for name in swept())]]
    for rate in form.rates:
        lines.append([f"{rate:g}", *(_swept_cell(results.base, name, rate) for name in swept())])
    return _rows(lines)


def _largest_sweep(results: Results, form: Form) -> str:
    bases = base_rates(results.base)
    lines = [["multiple of the rule's rate", *(OPTIMIZERS[name] for name in swept())]]
    for multiple in form.multiples:
        rates = {name: multiple * square_root(bases[name], LARGEST) for name in swept()}
        cells = [f"{_swept_cell(results.largest, name, rate)} at {rate:.4g}" for name, rate in rates.items()]
        lines.append([f"{multiple:g}", *cells])
    return _rows(lines)


def _swept_cell(results: Sequence[Result], optimizer: str, rate: float) -> str:
    """The loss, in bold where it is the lowest."""
    found = at(results, optimizer, rate)
    text = "diverged" if found.loss is None else f"{found.loss:.3f}"
    return f"**{text}**" if found == best(results, optimizer) else text
