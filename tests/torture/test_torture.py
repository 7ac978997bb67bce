"""The torture's own arithmetic: a seed tells the faults, and a report hides nothing."""

import json
import random

from tests.torture.kinds import DAMAGES, KINDS, Suffered, draw
from tests.torture.report import Report, Round, to_json, to_text


def test_a_seed_tells_the_faults():
    names = [*KINDS]
    assert draw(names, random.Random("7/1"), 50) == draw(names, random.Random("7/1"), 50)
    assert draw(names, random.Random("7/1"), 50) != draw(names, random.Random("7/2"), 50)
    assert set(draw(names, random.Random("7/1"), 1000)) == set(KINDS)
    assert set(draw(["save"], random.Random("7/1"), 5)) == {"save"}


def test_every_damage_is_one(tmp_path):
    for how, harm in DAMAGES.items():
        for number in range(20):
            path = tmp_path / f"{how}-{number}"
            path.write_bytes(b"some bytes")
            harm(path, random.Random(number))
            assert not path.exists() or path.read_bytes() != b"some bytes"


def report(**second: object) -> Report:
    rounds = [
        Round(
            1,
            "bf16",
            [
                Suffered("kill -9 of all", "here", hit=True, code=-9),
                Suffered("kill -9 of all", "late", hit=False, code=0),
            ],
            bitwise_equal=True,
            samples=640,
            repeated_steps=3,
        ),
        Round(2, "fp32", [Suffered("a file torn", "there", hit=True)], **second),  # type: ignore[arg-type]
    ]
    return Report("python -m tests.torture --minutes 1 --seed 7", 7, rounds, seconds=90)


def test_a_report_counts_what_rounds_survived():
    text = to_text(report(bitwise_equal=True, samples=640))
    assert "faults                2, of which kills 1; 1 more came too late or found nothing" in text
    assert "bitwise equal         2 of 2 rounds" in text
    assert "samples proven        1,280; steps done again 3" in text
    assert "kill -9 of all                          1  -9 (1)" in text
    assert text.endswith("nothing was wrong\n")


def test_a_report_hides_nothing():
    told = report(wrongs=["did not come to its end"])
    assert told.wrongs == ["round 2 (fp32): did not come to its end"]
    text = to_text(told)
    assert "faults                1, of which kills 1" in text  # of rounds that came to their end
    assert "WRONG: round 2 (fp32): did not come to its end" in text
    assert text.endswith("1 things were wrong\n")
    assert "bitwise equal         1 of 2" in to_text(report(bitwise_equal=False, wrongs=["other bytes"]))
    assert json.loads(to_json(told))["rounds"][0]["suffered"][0]["kind"] == "kill -9 of all"
    assert json.loads(to_json(told))["wrongs"] == told.wrongs
