"""Following a journal: nothing twice, nothing lost, whatever happens to the file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.observe.journal import MetricsFile, read_metrics
from nezha_ds.observe.tail import Tail
from tests.observe.samples import evaluation, events, record, start


def line(event):
    return event.model_dump_json().encode() + b"\n"


def steps(news):
    return [event.step for event in news.events]


@settings(max_examples=50, deadline=None)
@given(st.lists(events, max_size=6), st.lists(st.integers(1, 3000), max_size=30))
def test_pieces_of_any_size_tell_what_the_whole_tells(tmp_path_factory, some, sizes):
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    whole = b"".join(map(line, some))
    path.touch()
    tail, told = Tail(path), []
    with path.open("ab", buffering=0) as file:
        for size in [*sizes, len(whole)]:
            piece, whole = whole[:size], whole[size:]
            file.write(piece)
            told += tail.look().events
    assert repr(told) == repr(read_metrics(path))
    assert tail.look().events == []
    assert tail.at == path.stat().st_size


def test_a_file_that_is_not_there_yet_is_told_and_waited_for(tmp_path):
    tail = Tail(tmp_path / "run" / "metrics.jsonl")
    assert "No such file" in tail.look().problem
    MetricsFile(tail.path).update(start())
    news = tail.look()
    assert (steps(news), news.problem, news.anew) == ([0], "", False)


def test_a_torn_line_is_told_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = line(record(7))
    path.write_bytes(text[:100])
    tail = Tail(path)
    news = tail.look()
    assert (news.events, news.left, news.more) == ([], 100, False)
    path.write_bytes(text)
    assert steps(tail.look()) == [7]
    # A restart cuts a torn line off, which never was a part of what was read.
    with path.open("ab") as file:
        file.write(b'{"kind":"rec')
    assert tail.look().events == []
    writer = MetricsFile(path)
    writer.update(record(8))
    news = tail.look()
    assert (steps(news), news.anew, tail.unreadable) == ([8], False, 0)


def replaced(path, text):
    path.with_name("other").write_bytes(text)
    path.with_name("other").rename(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(line(record(3))),
        lambda path: replaced(path, b"".join(map(line, [start(), record(1), record(3), record(3)]))),
        lambda path: path.write_bytes(line(evaluation(3)) * 40),
    ],
    ids=["cut", "replaced", "written over"],
)
def test_another_file_in_its_place_is_read_from_its_beginning(tmp_path, change):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(record(1)) + line(record(2)))
    tail = Tail(path)
    assert steps(tail.look()) == [1, 2]
    change(path)
    news = tail.look()
    assert news.anew
    assert steps(news)[-1] == 3
    assert tail.at == path.stat().st_size


def test_lines_that_are_no_events_are_counted_and_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(record(1)) + b'{"kind":"record","from":"tomorrow"}\n\xff\xfe\n\n' + line(record(2)))
    tail = Tail(path)
    assert steps(tail.look()) == [1, 2]
    assert tail.unreadable == 3


def test_one_look_reads_no_more_than_it_may_and_says_what_is_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(record(step)) for step in range(20)))
    tail, told, looks, more = Tail(path), [], 0, True
    while more:
        news = tail.look(most=len(line(record(10))) * 3)
        told += steps(news)
        looks, more = looks + 1, news.more
        assert news.left == path.stat().st_size - tail.at
    assert told == list(range(20))
    assert looks >= 7


def test_a_line_without_end_holds_nothing_up(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 10_000 + b"\n" + line(record(1)))
    tail = Tail(path)
    told = []
    for _ in range(10):
        told += steps(tail.look(most=2500))
    assert told == [1]


def bytes_read():
    """That this process asked the kernel for, since it began."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_what_was_read_is_not_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(record(step)) for step in range(200)))
    tail = Tail(path)
    tail.look()
    before = bytes_read()
    for _ in range(10):
        assert tail.look().events == []
    assert bytes_read() - before < path.stat().st_size / 10
