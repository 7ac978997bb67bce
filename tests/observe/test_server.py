"""What strangers send ends, delays and fills nothing: neither the exporter nor the process that trains."""

import os
import resource
import socket
import ssl
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nezha_ds.observe import server
from nezha_ds.observe.request import Request, parse
from nezha_ds.observe.server import Allowance
from tests.helpers.processes import wait_for
from tests.helpers.tls import authority, issue
from tests.observe.exporters import address, ask, connection, counted, exchange, exporting, receive_all
from tests.observe.samples import record

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def exporter(tmp_path_factory):
    with exporting(tmp_path_factory.mktemp("run")) as exporter:
        yield exporter


HANDLES, THREADS = Path("/proc/self/fd"), Path("/proc/self/task")


def holdings():
    """How many sockets, pipes and threads this process has."""
    kinds = Counter(link(path).partition(":")[0] for path in HANDLES.iterdir())
    return kinds["socket"], kinds["pipe"], kinds["anon_inode"], len(list(THREADS.iterdir()))


def link(path):
    """What a descriptor stands for; nothing where it is closed by now."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def all_is_given_back(before):
    """Wait until this process has no more of them than before."""
    wait_for(lambda: all(now <= then for now, then in zip(holdings(), before, strict=True)))


# ------------------------------------------------------------------------------------------------------------ answers


def test_each_path_has_its_answer_and_all_are_counted(tmp_path):
    with exporting(tmp_path) as own:
        assert ask(own, "/healthz")[0] == 200
        assert ask(own, "/readyz") == (503, "rank 0: starting, step 0, 0 s ago\n")
        assert ask(own, "/metrics?query=is&left=aside")[0] == 200
        assert [ask(own, path)[0] for path in ("/", "/metrics/", "/Metrics", "/../etc/passwd")] == [404] * 4
        assert exchange(own, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
        found = counted(own)
    assert found.pop("collect_duration_seconds") > 0
    assert found == {
        'requests_total code="200",path="healthz"': 1,
        'requests_total code="503",path="readyz"': 1,
        'requests_total code="200",path="metrics"': 1,
        'requests_total code="404",path="other"': 4,
        'requests_total code="400",path="other"': 1,
        "refused_connections_total": 0,
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"])
def test_other_methods_are_told_which_is_right(exporter, method):
    client = connection(exporter)
    client.request(method, "/healthz")
    answer = client.getresponse()
    client.close()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_an_answer_tells_nothing_of_the_program(exporter):
    head = exchange(exporter, SCRAPE).partition(b"\r\n\r\n")[0].decode().lower()
    assert "server:" not in head and "python" not in head and "nezha" not in head
    assert "connection: close" in head


def test_a_fault_of_ours_is_told_once_and_ends_nothing(tmp_path, monkeypatch, caplog):
    with exporting(tmp_path) as own:
        monkeypatch.setattr("nezha_ds.observe.pages.choose_encoder", lambda accept: 1 / 0)
        assert [ask(own)[0] for _ in range(3)] == [500] * 3
        monkeypatch.undo()
        assert ask(own)[0] == 200
    assert len([one for one in caplog.records if one.name.startswith("nezha_ds") and one.levelname == "ERROR"]) == 1


# ----------------------------------------------------------------------------------------------- what is no request

HOSTILE = {
    "nothing": b"",
    "an empty head": b"\r\n\r\n",
    "half a line": b"GET",
    "half a head": b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "a future version": b"GET /metrics HTTP/9.9\r\n\r\n",
    "a long path": b"GET " + b"/" * 300_000 + b" HTTP/1.1\r\n\r\n",
    "a long line that does not end": b"A" * 300_000,
    "many headers": b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    "a folded header": b"GET /metrics HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
    "a header split by a zero": b"GET /metrics HTTP/1.1\r\nX\0: y\r\n\r\n",
    "a negative length": b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a body": b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 500_000,
    "chunks": b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "two requests": SCRAPE + SCRAPE,
    "a strange query": b"GET /metrics?name[]=%FF%00&name[]=nezha_train_loss HTTP/1.1\r\n\r\n",
    "a way out of the root": b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    "a proxy's request": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "a strange choice": b"GET /metrics HTTP/1.1\r\nAccept: " + b"q=0;,*/*;version=\xff" * 100 + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_request_kills_nothing_and_learns_nothing(exporter, sent, capfd, caplog):
    reply = exchange(exporter, sent)
    assert b"Traceback" not in reply and b"root:" not in reply and b" 500 " not in reply
    assert not reply or reply.startswith(b"HTTP/1.1 ")
    assert ask(exporter)[0] == 200
    assert capfd.readouterr().err == "" and not caplog.records


@settings(max_examples=300)
@given(st.binary(max_size=200))
@example(b"GET / HTTP/1.1\r\n\r\n\r\n\r\n")
def test_no_head_breaks_the_parser(head):
    assert isinstance(parse(head + b"\r\n\r\n"), (Request, int))


@settings(max_examples=100)
@given(st.sampled_from(["accept", "accept-encoding", "authorization"]), st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_the_answer(exporter, name, value):
    reply = exchange(exporter, f"GET /metrics HTTP/1.1\r\n{name}: {value}\r\n\r\n".encode("latin-1"))
    assert reply.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


def test_a_request_is_read_as_http_has_it():
    head = b"GET /metrics?x=1 HTTP/1.1\r\nAUTHORIZATION:\t Bearer a b \r\nEmpty:\r\nEmpty: again\r\n\r\n"
    assert parse(head) == Request("GET", "/metrics", {"authorization": "Bearer a b", "empty": ""})


# ------------------------------------------------------------------------------------------------- too slow, too many


def silent_clients(own, number):
    return [socket.create_connection(address(own), timeout=600) for _ in range(number)]


def test_silent_clients_make_room_for_others_and_leave_nothing(tmp_path, monkeypatch):
    """A thousand connections, 64 open at most: the oldest go, a scrape gets through, and all is given back."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 3600.0)
    before = holdings()
    with exporting(tmp_path) as own:
        clients = []
        for _ in range(10):
            clients += silent_clients(own, 100)
            assert ask(own)[0] == 200
            # Those that had to go learn it; descriptors of this test are as many as there are clients.
            for client in clients[: -server.CONNECTIONS]:
                assert receive_all(client) == b""
                client.close()
            clients = clients[-server.CONNECTIONS :]
        # The scrape that asks is the last of all; each before it took the place of a silent one.
        assert counted(own)["refused_connections_total"] == 1000 + 1 - server.CONNECTIONS
        for client in clients:
            client.close()
        wait_for(lambda: len(own._parts[0]._open) == 0)
    all_is_given_back(before)


def test_a_client_that_dribbles_has_a_time_limit_in_total(tmp_path, monkeypatch):
    """A byte now and then kept a connection for ever where the limit was one of silence."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    with exporting(tmp_path) as own, socket.create_connection(address(own), timeout=600) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")

        def dropped():
            try:
                client.send(b"y")
            except OSError:
                return True
            return False

        wait_for(dropped)
        monkeypatch.undo()
        assert ask(own)[0] == 200


def test_a_client_that_never_reads_has_one_too(tmp_path, monkeypatch):
    with exporting(tmp_path) as own:
        # 8 MB of series, more than the kernel keeps for a reader.
        own.update(record(source_tokens={f"{number:04000}": 1 for number in range(2_000)}))
        monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address(own))
            client.sendall(SCRAPE)
            wait_for(lambda: answered(own) == 1)
            wait_for(lambda: not own._parts[0]._open)
            client.settimeout(600)
            assert len(receive_all(client)) < 8_000_000
        assert ask(own, "/healthz")[0] == 200


def answered(own):
    """How many requests were, as the board has it."""
    (family,) = [family for family in own._board.collect() if family.name == "nezha_exporter_requests"]
    return sum(sample.value for sample in family.samples)


def test_a_body_without_end_has_an_end(exporter):
    with socket.create_connection(address(exporter), timeout=600) as client:
        client.sendall(b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|Broken"):
            while True:
                client.sendall(bytes(1 << 16))


def test_many_endless_heads_take_little_memory(tmp_path, monkeypatch):
    """64 connections that send 2 MB each at once: no more is kept of each than one reading, 256 kB."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 3600.0)
    sent = memoryview(b"GET /" + b"a" * 2_000_000)
    with exporting(tmp_path) as own:
        tracemalloc.start()
        clients = silent_clients(own, server.CONNECTIONS)
        for client in clients:
            client.setblocking(False)
        left = dict.fromkeys(clients, sent)
        while left:
            for client in list(left):
                try:
                    left[client] = left[client][client.send(left[client][: 1 << 18]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    left[client] = sent[:0]
                if not left[client]:
                    del left[client]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for client in clients:
            client.close()
        assert ask(own)[0] == 200
    assert peak < server.CONNECTIONS * (1 << 19)


def test_without_file_descriptors_it_waits_for_some(exporter):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.settimeout(600)
        used = [int(path.name) for path in HANDLES.iterdir()]
        # All numbers below the limit are taken then; the listing itself took one.
        holes = [os.dup(0) for _ in range(max(used) + 1 - len(used) + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max([*used, *holes]) + 1, hard))
        try:
            client.connect(address(exporter))
            client.sendall(SCRAPE)
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for hole in holes:
                os.close(hole)
        client.settimeout(600)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_no_answer_waits_for_an_acknowledgement(exporter):
    """Over TLS each waited 40 ms for that of the session tickets; the connections have what the listener has."""
    assert exporter._parts[0]._listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_reset_connection_is_nobody_else_s(exporter):
    for client in silent_clients(exporter, 25):
        # Reset instead of a farewell.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        client.close()
    assert ask(exporter)[0] == 200


# ------------------------------------------------------------------------------------------------------- the training


def test_the_allowance_is_a_share_of_time_and_a_burst():
    now, used = [0.0], [0.0]
    allowance = Allowance(0.1, 1.0, clock=lambda: now[0], used=lambda: used[0])
    used[0] += 1.0
    assert allowance.wait() == 0  # the burst
    used[0] += 0.5
    assert allowance.wait() == pytest.approx(5.0)
    now[0] += 5.0
    assert allowance.wait() == pytest.approx(0.0)
    now[0] += 1000.0
    assert allowance.wait() == 0
    used[0] += 1.2  # what was not used is not saved up
    assert allowance.wait() == pytest.approx(2.0)


FLOOD = """
import socket, sys
for _ in range(int(sys.argv[3])):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=600) as client:
            client.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
            while client.recv(65536): pass
    except OSError:
        pass
"""


def test_a_flood_of_scrapes_leaves_the_training_its_time(tmp_path, monkeypatch):
    """However many ask, the thread that answers has a tenth of the time that goes by, and the burst.

    Unbounded, it took all that the main thread left it of Python's lock: half.
    """
    monkeypatch.setattr(server, "BURST_SECONDS", 0.1)
    with exporting(tmp_path) as own:
        for rank in range(64):
            own.update(record(rank, source_tokens={str(rank): 1}))
        clock = time.pthread_getcpuclockid(own._parts[0]._thread.ident)
        began, spent = time.monotonic(), time.clock_gettime(clock)
        arguments = [sys.executable, "-c", FLOOD, *map(str, address(own)), "5"]
        floods = [subprocess.Popen(arguments) for _ in range(4)]
        steps = 0
        while any(flood.poll() is None for flood in floods):
            sum(range(10_000))  # a training that holds Python's lock whenever it can
            steps += 1
        passed, spent = time.monotonic() - began, time.clock_gettime(clock) - spent
        assert counted(own)['requests_total code="200",path="metrics"'] == 20
    assert steps > 100
    # What was let in before the allowance was spent is still answered.
    assert spent < server.SHARE * passed + 0.1 + 0.1


def test_closing_ends_thread_and_connections_at_once(tmp_path):
    before = holdings()
    with exporting(tmp_path) as own:
        clients = silent_clients(own, 20)
        assert ask(own)[0] == 200
    assert [receive_all(client) for client in clients] == [b""] * 20
    for client in clients:
        client.close()
    all_is_given_back(before)


# --------------------------------------------------------------------------------------------------------- broken TLS


def test_what_is_no_tls_does_not_disturb_it(tmp_path, monkeypatch, capfd, caplog):
    signer = authority(tmp_path)
    pair = issue(tmp_path, "server", signer)
    context = ssl.create_default_context(cafile=str(signer.certificate))
    with exporting(tmp_path, certificate=pair.certificate, key=pair.key) as own:
        hello = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x").do_handshake()
        sent = hello.read()
        for garbage in (b"", SCRAPE, bytes(1000), sent[:100], sent[:5] + os.urandom(len(sent) - 5), sent + sent):
            assert b"HTTP/1.1" not in exchange(own, garbage)
            assert ask(own, context=context)[0] == 200
        monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
        with socket.create_connection(address(own), timeout=600) as client:
            client.sendall(sent)  # and never goes on with the handshake
            receive_all(client)
        monkeypatch.undo()
        assert ask(own, context=context)[0] == 200
    assert capfd.readouterr().err == "" and not caplog.records
