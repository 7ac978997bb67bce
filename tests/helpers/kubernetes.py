"""Manifests built by the real kubectl, and their pods as processes of this machine.

What the platform would give a pod is given here: its completion index, what controllers and the kubelet put into the
environment, `$(VAR)` in command and arguments, config maps as files, volumes as folders, names of other pods.
"""

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.processes import session
from tests.helpers.ranks import REPOSITORY, environment

KUBECTL = Path(sys.executable).with_name("kubectl")
MANIFESTS = REPOSITORY / "launch" / "kubernetes"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
INDEX = "batch.kubernetes.io/job-completion-index"

Tree = dict[str, Any]


@functools.cache
def _built(folder: Path) -> str:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def build(folder: Path) -> list[Tree]:
    """What `kubectl apply -k` would send, document by document."""
    return [document for document in yaml.safe_load_all(_built(folder)) if document]


def overlay(name: str) -> dict[str, Tree]:
    """The documents of an overlay by kind; of each kind there is one."""
    documents = build(MANIFESTS / "overlays" / name)
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def job_of(documents: Mapping[str, Tree]) -> Tree:
    """The spec of the Job that each gang comes to."""
    if "Job" in documents:
        return documents["Job"]["spec"]
    spec = (
        documents["JobSet"]["spec"]
        if "JobSet" in documents
        else documents["TrainingRuntime"]["spec"]["template"]["spec"]
    )
    (nodes,) = spec["replicatedJobs"]
    return nodes["template"]["spec"]


def container_of(documents: Mapping[str, Tree]) -> Tree:
    """The container of a node."""
    (container,) = job_of(documents)["template"]["spec"]["containers"]
    return container


def given_by_platform(documents: Mapping[str, Tree], index: int) -> tuple[dict[str, str], dict[str, str]]:
    """What controllers add to pod number `index`: its labels and annotations, and variables.

    Kubernetes documents the Job's, JobSet its labels, Kubeflow's Trainer (torch policy) the PET_* ones.
    """
    fields = {f"metadata.annotations['{INDEX}']": str(index), f"metadata.labels['{INDEX}']": str(index)}
    variables = {"JOB_COMPLETION_INDEX": str(index)}
    if "Job" in documents:
        fields["metadata.labels['batch.kubernetes.io/job-name']"] = documents["Job"]["metadata"]["name"]
    if "JobSet" in documents:
        name = documents["JobSet"]["metadata"]["name"]
        fields["metadata.labels['jobset.sigs.k8s.io/jobset-name']"] = name
        fields["metadata.labels['batch.kubernetes.io/job-name']"] = f"{name}-node-0"
    if "TrainJob" in documents:
        name, trainer = documents["TrainJob"]["metadata"]["name"], documents["TrainJob"]["spec"]["trainer"]
        variables |= {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": "29500",
        }
    return fields, variables


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(VAR)` as the kubelet does it: an unknown one stays, `$$` is a dollar."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        text,
    )


def variables_of(documents: Mapping[str, Tree], index: int) -> dict[str, str]:
    """The environment of a container, as far as the manifest and the platform make it."""
    fields, added = given_by_platform(documents, index)
    found: dict[str, str] = {}
    for entry in container_of(documents).get("env", []):
        source = entry.get("valueFrom")
        # A reference sees what stands before it; what controllers add stands behind.
        found[entry["name"]] = fields[source["fieldRef"]["fieldPath"]] if source else expand(entry["value"], found)
    return found | added


def words_of(documents: Mapping[str, Tree], index: int) -> tuple[list[str], list[str]]:
    """Command and arguments of a pod, expanded."""
    container, variables = container_of(documents), variables_of(documents, index)
    expanded = {name: [expand(word, variables) for word in container[name]] for name in ("command", "args")}
    unknown = [word for words in expanded.values() for word in words if "$(" in word]
    assert not unknown
    return expanded["command"], expanded["args"]


@dataclass
class Pod:
    """One pod of a gang, as a process group of this machine."""

    documents: Mapping[str, Tree]
    index: int
    places: Mapping[str, str]
    """What stands for a mount or a name of the cluster, the longest first that fits."""
    options: Sequence[str] = ()
    """More options of `nezha-ds launch`."""
    settings: Sequence[str] = ()
    """What a user adds to the arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    process: "subprocess.Popen[str] | None" = None

    def start(self) -> "subprocess.Popen[str]":
        """Start the container's process, as it would be process 1."""
        command, arguments = words_of(self.documents, self.index)
        assert command[0] == "nezha-ds"
        words = [*command[1:], *self.options, *arguments, *(f"--set={setting}" for setting in self.settings)]
        own = {name: self._placed(value) for name, value in variables_of(self.documents, self.index).items()}
        output = self.log.open("a") if self.log else subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nezha_ds.cli", *map(self._placed, words)],
            env=environment() | own | dict(self.env),
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def kill(self) -> None:
        """What a lost machine leaves of a pod: nothing."""
        assert self.process
        while living := session(self.process.pid):
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()

    def _placed(self, word: str) -> str:
        for place in sorted(self.places, key=len, reverse=True):
            word = re.sub(rf"(?<![\w/.]){re.escape(place)}(?![\w.])", self.places[place], word)
        return word
