"""The pods of every overlay, started here with what the platform would give them: who they say they are, what they do.

Two of them train, lose one, and are started again as a Job's controller would: by the exit codes of its own
podFailurePolicy.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from nezha_ds.observe.events import Record
from nezha_ds.observe.journal import METRICS_FILE, read_metrics
from tests.helpers.kubernetes import OVERLAYS, Pod, container_of, job_of, overlay, words_of
from tests.helpers.processes import wait_for
from tests.helpers.ranks import free_port

WHO = r"""
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
os.write(1, json.dumps([[os.environ[name] for name in names], sys.argv[1:]]).encode() + b"\n")
"""
SMALL = (
    *("data.length=32", "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"),
    *("model.intermediate_size=64", "train.steps=9", "train.log_every=1", "train.eval_every=0"),
    *("train.eval_samples=32", "train.save_every=3", "train.async_save=false"),
)
LAST_STEP = 5


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_ranks_of_all_pods_are_one_world(name: str, tmp_path: Path) -> None:
    script = tmp_path / "who.py"
    script.write_text(WHO)
    documents = overlay(name)
    pods = [Pod(documents, index, {}, options=("--script", str(script))) for index in (0, 1)]
    told: list[tuple[list[str], list[str]]] = []
    for pod in pods:
        process = pod.start()
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
        told += [json.loads(line) for line in printed.splitlines() if line.startswith("[[")]
    local = len(told) // 2
    assert local == (1 if name == "cpu" else 8)
    ranks = sorted(int(own[0]) for own, _ in told)
    assert ranks == list(range(2 * local))
    for (rank, size, local_rank, local_size, node, *_), arguments in told:
        assert (int(rank) // local, int(rank) % local) == (int(node), int(local_rank))
        assert (int(size), int(local_size)) == (2 * local, local)
        assert arguments == words_of(documents, int(node))[1][1:]
    hosts = {"jobset": "nezha-node-0-0.nezha", "trainjob": "nezha-node-0-0.nezha"}
    assert {(own[5], own[6]) for own, _ in told} == {(hosts.get(name, "nezha-0.nezha"), "29500")}


@dataclass
class Gang:
    """The pods of the overlay `cpu`, and where this machine has what they share."""

    pods: list[Pod]
    folder: Path
    """The volume of runs."""
    gate: Path
    probed: list[int]
    """The port of each pod's exporter: here they share a host."""

    def steps(self) -> list[int]:
        """The steps in the journal, in order."""
        path = self.folder / "demo" / METRICS_FILE
        return [event.step for event in read_metrics(path) if isinstance(event, Record)] if path.exists() else []

    def probe(self, index: int, kind: str) -> int:
        """What one of a pod's probes would see; 0 when nobody listens."""
        path = container_of(self.pods[index].documents)[f"{kind}Probe"]["httpGet"]["path"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probed[index]}{path}", timeout=600) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def logs(self) -> str:
        """The end of what each pod has to say."""
        return "\n".join(pod.log.read_text()[-2000:] for pod in self.pods if pod.log)


@pytest.fixture
def gang(embedded: Path, warm: None, extensions: Path, tmp_path: Path) -> Iterator[Gang]:
    store, probed, gate = free_port(), [free_port(), free_port()], tmp_path / "gate"
    places = {"/runs/shards": str(embedded), "/runs": str(tmp_path), "nezha-0.nezha:29500": f"127.0.0.1:{store}"}
    env = {"LAST_STEP": str(LAST_STEP), "GATE": str(gate), "TORCH_EXTENSIONS_DIR": str(extensions)}
    documents, options = overlay("cpu"), ("--script", "tests/train/scripts/gated_pretrain.py")
    gang = Gang([], tmp_path, gate, probed)
    for index in (0, 1):
        settings = (*SMALL, f"exporter.port={probed[index]}")
        gang.pods.append(Pod(documents, index, places, options, settings, env, tmp_path / f"pod-{index}.log"))
    try:
        yield gang
    finally:
        for pod in gang.pods:
            if pod.process:
                pod.kill()


def control(gang: Gang) -> list[int]:
    """What a Job's controller does until all pods are well: make those anew that may be. The codes they ended with."""
    spec, codes = job_of(gang.pods[0].documents), []
    final = next(rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule)

    def all_done() -> bool:
        for pod in gang.pods:
            assert pod.process
            if code := pod.process.poll():
                codes.append(code)
                assert code not in final, gang.logs()
                assert len(codes) < 10, gang.logs()
                pod.start()
        return all(pod.process and pod.process.poll() == 0 for pod in gang.pods)

    wait_for(all_done)
    return codes


@pytest.mark.ranks
def test_a_pod_that_is_lost_comes_back_and_the_run_goes_on(gang: Gang) -> None:
    first, second = gang.pods
    process, _ = first.start(), second.start()
    wait_for(lambda: LAST_STEP in gang.steps(), process)
    assert [gang.probe(index, kind) for index in (0, 1) for kind in ("startup", "liveness", "readiness")] == [200] * 6

    # A machine is lost. The Job makes its pod anew while node 0 does not know yet, so that the new one comes to a
    # meeting that is over; then node 0 takes its next step, and finds that it has lost a rank.
    second.kill()
    assert gang.probe(1, "liveness") == 0
    assert second.start().wait(timeout=600) == 1
    assert "they met before" in gang.logs()
    gang.gate.touch()
    codes = control(gang)

    assert codes, gang.logs()
    assert set(codes) == {1}, gang.logs()
    assert gang.steps() == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]


@pytest.mark.ranks
def test_a_node_that_came_to_a_meeting_that_is_over_may_try_again(warm: None, extensions: Path, tmp_path: Path) -> None:
    """The other node ended, or was never well: no fault of the recipe's, so a code that starts the pod again."""
    port = free_port()
    meetings = [TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False)]
    places = {"nezha-0.nezha:29500": f"127.0.0.1:{port}", "/runs": str(tmp_path)}
    env, log = {"TORCH_EXTENSIONS_DIR": str(extensions)}, tmp_path / "pod.log"
    pod = Pod(overlay("cpu"), 1, places, settings=("exporter.port=0",), env=env, log=log)
    process, empty = pod.start(), meetings[0].num_keys()
    try:
        wait_for(lambda: meetings[0].num_keys() > empty, process)  # it has told where it is, and waits for rank 0
        meetings.clear()
        process.wait(timeout=600)
    finally:
        pod.kill()
    printed = log.read_text()
    assert process.returncode == 1, printed
    assert "rank 1 of 2 could not meet the others" in printed
    assert "start it again" in printed
