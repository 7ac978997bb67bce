"""What a torture came to, as text and JSON: faults survived by kind, exit codes, and everything that was not right."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from tests.torture.kinds import Suffered


@dataclass
class Round:
    """One run from its beginning to its end, through its faults."""

    number: int
    setup: str
    suffered: list[Suffered] = field(default_factory=list)
    bitwise_equal: bool | None = None
    """Whether the last weights and moments are those of the undisturbed run; None: it did not come to its end."""
    samples: int = 0
    """Samples that the ledger proved."""
    repeated_steps: int = 0
    wrongs: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Report:
    """All rounds."""

    command: str
    seed: int
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False
    """Ended by Ctrl-C."""

    @property
    def wrongs(self) -> list[str]:
        """Everything that was not right."""
        return [f"round {one.number} ({one.setup}): {wrong}" for one in self.rounds for wrong in one.wrongs]

    @property
    def finished(self) -> list[Round]:
        """Rounds that came to their end."""
        return [one for one in self.rounds if one.bitwise_equal is not None]


def to_json(report: Report) -> str:
    """Everything, to be read by programs."""
    return json.dumps({**asdict(report), "wrongs": report.wrongs}, indent=1) + "\n"


def to_text(report: Report) -> str:
    """The same for people."""
    hits = [one for each in report.finished for one in each.suffered if one.hit]
    late = sum(not one.hit for each in report.finished for one in each.suffered)
    kills = sum("kill" in one.kind for one in hits)
    equal = sum(bool(one.bitwise_equal) for one in report.finished)
    samples = sum(one.samples for one in report.finished)
    lines = [
        f"{report.command} (seed {report.seed}), {report.seconds / 60:.1f} minutes{', stopped' * report.stopped}",
        "",
        f"rounds                {len(report.finished)}, {_by(one.setup for one in report.finished)}",
        f"faults                {len(hits)}, of which kills {kills}; {late} more came too late or found nothing",
        f"bitwise equal         {equal} of {len(report.finished)} rounds",
        f"samples proven        {samples:,}; steps done again {sum(one.repeated_steps for one in report.finished)}",
        f"lived on, ended by us {sum(one.outlived for one in hits)} processes",
        "",
        *_table(hits),
        "",
        *(f"WRONG: {wrong}" for wrong in report.wrongs),
        "nothing was wrong" if not report.wrongs else f"{len(report.wrongs)} things were wrong",
    ]
    return "\n".join(lines) + "\n"


def _table(hits: Sequence[Suffered]) -> list[str]:
    codes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for one in hits:
        codes[one.kind].update([] if one.code is None else [one.code])
    rows = [f"{'fault':36}{'times':>5}  exit codes of the launcher"]
    for kind, count in sorted(Counter(one.kind for one in hits).items()):
        rows.append(f"{kind:36}{count:5}  {', '.join(f'{code} ({n})' for code, n in sorted(codes[kind].items()))}")
    return rows


def _by(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
