import gzip
import http.client
import logging
import math
import re
import socket
import sys
import threading
import urllib.request
from contextlib import closing

import pytest
from hypothesis import given, settings
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from nezha_ds.errors import LaunchError
from nezha_ds.observe.board import Board, _Series
from nezha_ds.observe.exporter import ExporterSettings, open_exporter
from nezha_ds.observe.metrics import BY_NAME, TABLE, Value
from nezha_ds.observe.pulse import Pulse
from nezha_ds.world import World
from tests.helpers.ranks import free_port
from tests.observe.samples import (
    copy,
    evaluation,
    events,
    of_the_server,
    record,
    save,
    snapshot,
    start,
    stop,
    trouble,
)

ALL = (start(), record(), evaluation(), snapshot(), save(), copy(), stop(), trouble())
AFTER_A_STEP = {"nezha_train_last_step_timestamp_seconds"}


@pytest.fixture
def exporter(tmp_path):
    exporter = opened(tmp_path, "demo", port=0)
    yield exporter
    exporter.close()


def opened(folder, run, **chosen):
    """An exporter of a run of one rank."""
    with closing(Pulse.open(folder, World())) as pulse:
        exporter = open_exporter(ExporterSettings(linger_seconds=0, **chosen), World(), run, pulse)
    assert exporter
    return exporter


def scrape(exporter, accept="text/plain"):
    request = urllib.request.Request(exporter.url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return reply.read().decode()


def samples(text):
    """{(name, labels without run): value} of an exposition."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "run"}
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


def address(exporter):
    host, port = re.findall(r"//(.*):(\d+)/", exporter.url)[0]
    return host, int(port)


def test_the_exposition_lists_the_table_and_nothing_else(exporter):
    """Before anything is known, and after."""
    for event in (None, *ALL):
        if event:
            exporter.update(event)
        families = re.findall(r"^# TYPE (\S+) (\S+)$", scrape(exporter), re.MULTILINE)
        assert families == [(m.name, "gauge" if m.kind == "info" else m.kind) for m in TABLE]


def test_every_series_names_its_run_and_has_help(exporter):
    for event in ALL:
        exporter.update(event)
    exporter._board.add(of_the_server())
    text = scrape(exporter)
    names = {family.name for family in parse(text) if family.samples and family.documentation}
    assert names == {metric.name.removesuffix("_total") for metric in TABLE if metric.name not in AFTER_A_STEP}
    assert all(sample.labels["run"] == "demo" for family in parse(text) for sample in family.samples)


def test_openmetrics_parses_with_its_units(exporter):
    for event in ALL:
        exporter.update(event)
    families = list(parse_openmetrics(scrape(exporter, "application/openmetrics-text; version=1.0.0")))
    assert len(families) == len(TABLE)
    assert {family.name: family.unit for family in families}["nezha_train_phase_seconds"] == "seconds"


def test_gauges_are_set_counters_grow_histograms_count(exporter):
    exporter.update(record(10, loss=7.0, step_seconds=(0.05, 1.5, 1000.0)))
    exporter.update(record(20, loss=6.0, step_seconds=(1.5,)))
    found = samples(scrape(exporter))
    assert found["nezha_train_global_step",] == 20
    assert found["nezha_train_loss", ("objective", "total")] == 6.0
    assert found["nezha_train_steps_total",] == 4
    assert found["nezha_train_tokens_total", ("kind", "real")] == 80_000
    assert found["nezha_train_step_duration_seconds_count",] == 4
    assert found["nezha_train_step_duration_seconds_sum",] == pytest.approx(1003.05)
    # A value on a bound belongs below it; buckets are cumulative.
    bucket = "nezha_train_step_duration_seconds_bucket"
    assert [found[bucket, ("le", le)] for le in ("0.05", "1.0", "2.0", "200.0", "+Inf")] == [1, 1, 3, 3, 4]


def test_counters_start_at_zero_and_gauges_are_absent_until_known():
    found = samples(generate_latest(Board("demo")).decode())
    assert found["nezha_train_tokens_total", ("kind", "masked")] == 0
    assert found["nezha_checkpoint_saves_total", ("result", "failure")] == 0
    assert {BY_NAME[re.sub("_(bucket|sum|count)$", "", name)].kind for name, *_ in found} == {"counter", "histogram"}


def test_a_loss_that_is_not_a_number_is_shown_as_such(exporter):
    exporter.update(record(loss=math.nan, grad_norm=math.inf))
    found = samples(scrape(exporter))
    assert math.isnan(found["nezha_train_loss", ("objective", "total")])
    assert found["nezha_train_grad_norm",] == math.inf


@settings(max_examples=50)
@given(events)
def test_no_event_can_break_the_exposition(event):
    """Run names, splits and job numbers are any text; the parser must find one value for each label."""
    board = Board('quo"te\\\n')
    board.update(event)
    parsed = list(parse(generate_latest(board).decode()))
    assert {sample.labels["run"] for family in parsed for sample in family.samples} == {'quo"te\\\n'}


def test_a_value_outside_the_table_cannot_be_shown(monkeypatch):
    board = Board("demo")
    for value, error in (
        (Value("nezha_train_lost", 1.0), KeyError),
        (Value("nezha_train_loss", 1.0), AssertionError),
        (Value("nezha_train_loss", 1.0, {"objective": "happiness"}), AssertionError),
    ):
        monkeypatch.setattr("nezha_ds.observe.board.values_of", lambda event, value=value: [value])
        with pytest.raises(error):
            board.update(record())


def test_an_event_is_seen_whole_or_not_at_all(monkeypatch):
    """A scrape that comes in the middle of a record, when its samples are counted and its tokens not yet, waits."""
    board, seen, take = Board("demo"), [], _Series.take
    reader = threading.Thread(target=lambda: seen.extend(board.collect()))

    def take_slowly(series, value):
        if series._metric.name == "nezha_train_tokens_total" and not reader.ident:
            reader.start()
            reader.join(0.1)
        take(series, value)

    monkeypatch.setattr(_Series, "take", take_slowly)
    board.update(record(samples=1, real_tokens=1, padding_tokens=1, masked_tokens=1))
    reader.join()
    counted = {family.name: [sample.value for sample in family.samples] for family in seen}
    assert (counted["nezha_train_samples"], counted["nezha_train_tokens"]) == ([1], [1, 1, 1])


def test_nodes_beyond_the_first_export_only_what_is_theirs(tmp_path):
    second_node = World(rank=2, world_size=4, local_rank=0, local_world_size=2, node=1)
    pulse = Pulse.open(tmp_path, second_node)
    exporter = open_exporter(ExporterSettings(port=0, linger_seconds=0), second_node, "demo", pulse)
    assert exporter is not None
    for event in ALL:
        exporter.update(event)
    found = {name for name, *_ in samples(scrape(exporter))}
    exporter.close()
    pulse.close()
    assert found >= {"nezha_build_info", "nezha_train_step_duration_seconds_count", "nezha_run_state"}
    assert not found & {"nezha_train_tokens_total", "nezha_train_loss", "nezha_run_world_size"}


def test_who_has_an_exporter(tmp_path):
    other_rank = World(rank=1, world_size=2, local_rank=1, local_world_size=2)
    pulse = Pulse.open(tmp_path, other_rank)
    assert open_exporter(ExporterSettings(), other_rank, "demo", pulse) is None
    assert open_exporter(ExporterSettings(enabled=False), World(), "demo", pulse) is None
    pulse.close()


def test_two_runs_on_one_machine_both_get_a_port(exporter, tmp_path, caplog):
    _, port = address(exporter)
    with caplog.at_level(logging.WARNING, logger="nezha_ds"):
        second = opened(tmp_path, "second", port=port)
    assert f"port {port} is taken" in caplog.text and second.url in caplog.text
    assert port < address(second)[1] <= port + 15
    assert 'run="second"' in scrape(second)
    second.close()


def test_closing_frees_the_port(tmp_path):
    first = opened(tmp_path, "first", port=free_port())
    _, port = address(first)
    first.close()
    second = opened(tmp_path, "second", port=port)
    assert address(second)[1] == port
    second.close()


def test_an_address_that_is_not_ours_is_an_error_with_a_way_out(tmp_path):
    # 192.0.2.0/24 is for documentation only: no machine has it.
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1:29600 \(Cannot assign requested address\).*exporter\.enabled"):
        opened(tmp_path, "demo", host="192.0.2.1")


def test_it_listens_on_the_loopback_unless_told_otherwise(exporter):
    assert address(exporter)[0] == "127.0.0.1"


HOSTILE = [
    b"",
    b"\r\n\r\n",
    b"GET",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx",
    b"GET /metrics?name[]=%FF%00&name[]=nezha_train_loss HTTP/1.1\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_request_kills_nothing_and_learns_nothing(exporter, request_bytes, capfd):
    with socket.create_connection(address(exporter), timeout=600) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        reply = b""
        while part := _receive(client):
            reply += part
    assert b"Traceback" not in reply and b"root:" not in reply
    exporter.update(record(77))
    assert samples(scrape(exporter))["nezha_train_global_step",] == 77
    assert capfd.readouterr().err == ""


def _receive(client):
    try:
        return client.recv(65536)
    except ConnectionResetError:
        return b""


def test_silent_and_vanishing_clients_do_not_delay_others(exporter):
    silent = [socket.create_connection(address(exporter)) for _ in range(50)]
    # The kernel lets a client that finds the queue full try again after a second.
    assert [sent_again(client) for client in silent] == [0] * 50
    for client in silent[:25]:
        # Reset instead of a farewell.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        client.close()
    assert "nezha_train_steps_total" in scrape(exporter)
    for client in silent[25:]:
        client.close()


def sent_again(client):
    """How many packets of a connection were sent twice: `tcpi_total_retrans` of Linux."""
    return int.from_bytes(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:], sys.byteorder)


def test_other_methods_are_refused_and_compression_is_offered(exporter):
    connection = http.client.HTTPConnection(*address(exporter), timeout=600)
    connection.request("DELETE", "/metrics")
    assert connection.getresponse().status == 405
    connection.close()
    request = urllib.request.Request(exporter.url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        assert b"nezha_train_steps_total" in gzip.decompress(reply.read())
