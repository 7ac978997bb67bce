"""Every overlay is built by kubectl and is what a cluster's schemas know; and what is told twice is told alike."""

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from launch.kubernetes.generate import generated
from nezha_ds.arguments import parser
from nezha_ds.config import load
from nezha_ds.errors import Exit
from nezha_ds.observe.exporter import ExporterSettings
from nezha_ds.train.ds_config import load_ds_config
from nezha_ds.train.recipe import Recipe
from tests.helpers import kubernetes
from tests.helpers.kubernetes import KUBECTL, MANIFESTS, OVERLAYS, build, container_of, job_of, overlay, words_of
from tests.helpers.ranks import REPOSITORY
from tests.kubernetes.schemas import problems

FOLDERS = [*(f"overlays/{name}" for name in OVERLAYS), "storage", "monitoring"]
KINDS = {
    *("Job", "Service", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim"),
    *("JobSet", "TrainJob", "TrainingRuntime", "PodMonitor", "PrometheusRule"),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_cluster_would_take_it(folder):
    documents = build(MANIFESTS / folder)
    assert documents
    for document in documents:
        assert not problems(document), document["kind"]


def test_every_folder_that_can_be_applied_is_tried():
    found = [path.parent for path in MANIFESTS.rglob("kustomization.yaml")]
    applied = {str(path.relative_to(MANIFESTS)) for path in found if path.parent.name not in ("gang", "with")}
    assert applied == {*FOLDERS, "base"}


def examples() -> dict[str, dict[str, Any]]:
    """A document of each kind."""
    return {document["kind"]: document for folder in FOLDERS for document in build(MANIFESTS / folder)}


def test_these_are_all_kinds():
    assert set(examples()) == KINDS


def deepest(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping below the kind's own fields whose keys are fields and not a user's words."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if name in ("labels", "annotations", "matchLabels", "data", "selector", "requests", "limits"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                yield child
                yield from deepest(child)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_misspelt_field_is_seen(kind):
    document = copy.deepcopy(examples()[kind])
    first, *_, last = [document, *deepest(document)]
    for place in (first, last):
        name = min(place.keys() - {"apiVersion", "kind"})
        place[f"{name}x"] = place.pop(name)
        assert problems(document), place
        place[name] = place.pop(f"{name}x")
    assert not problems(document)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_may_do_nothing_but_write_its_volumes(name):
    documents = overlay(name)
    pod, container = job_of(documents)["template"]["spec"], container_of(documents)
    user = re.search(r"^USER (\d+):(\d+)$", (REPOSITORY / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert user
    security = pod["securityContext"]
    assert security["runAsNonRoot"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
        int(user[1]),
        int(user[2]),
        int(user[2]),
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    assert documents["ServiceAccount"]["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert {"/tmp", "/runs", "/dev/shm"} <= set(mounted.values())
    assert "limits" in container["resources"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_exit_codes_that_nobody_should_try_again_end_the_job(name):
    documents = overlay(name)
    final = [int(code) for code in (Exit.REFUSED, Exit.DIVERGED, Exit.NO_PROGRESS)]
    job = job_of(documents)
    rules = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert [rule["onExitCodes"]["values"] for rule in rules] == [final]
    assert rules[0]["onExitCodes"]["containerName"] == container_of(documents)["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused
    assert job["podReplacementPolicy"] == "Failed"
    if "Job" not in documents:
        spec = (
            documents["JobSet"]["spec"]
            if "JobSet" in documents
            else documents["TrainingRuntime"]["spec"]["template"]["spec"]
        )
        assert [rule["action"] for rule in spec["failurePolicy"]["rules"]] == ["FailJobSet"]
        assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
        assert job["backoffLimit"] == 0


@pytest.mark.parametrize("name", OVERLAYS)
def test_nodes_ranks_and_gpus_are_told_alike(name):
    documents = overlay(name)
    given = parser().parse_args([part for words in words_of(documents, 1) for part in words][1:])
    job, resources = job_of(documents), container_of(documents)["resources"]
    assert given.node_rank == 1
    if "TrainJob" in documents:
        trainer = documents["TrainJob"]["spec"]["trainer"]
        assert trainer["resourcesPerNode"] == resources
        assert trainer["numProcPerNode"] == resources["limits"]["nvidia.com/gpu"] == given.ranks
        assert trainer["numNodes"] == given.nodes == 2
    else:
        assert job["completionMode"] == "Indexed"
        assert job["completions"] == job["parallelism"] == given.nodes == 2
        assert resources["limits"].get("nvidia.com/gpu", 1) == given.ranks


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_recipe_that_a_pod_reads_is_a_sound_one(name, tmp_path):
    documents = overlay(name)
    for file, text in documents["ConfigMap"]["data"].items():
        (tmp_path / file).write_text(text)
    launched = parser().parse_args([part for words in words_of(documents, 0) for part in words][1:])
    given = parser().parse_args(
        ["pretrain", *(word.replace("/config/", f"{tmp_path}/") for word in launched.arguments)]
    )
    recipe = load(Recipe, given.recipe, given.set)
    load_ds_config(given.deepspeed_config, launched.nodes * launched.ranks)
    mounts = tuple(mount["mountPath"] for mount in container_of(documents)["volumeMounts"])
    for folder in (str(recipe.run.folder), recipe.data.shards, recipe.data.cache):
        assert not folder or str(folder).startswith((*mounts, "s3://"))
    assert recipe.exporter.host == "0.0.0.0"
    if name == "s3":
        assert str(recipe.data.shards).startswith("s3://")
        assert recipe.run.copy_to.endswith(recipe.run.folder.name)
        (volume,) = (one for one in job_of(documents)["template"]["spec"]["volumes"] if one["name"] == "cache")
        assert recipe.data.cache_limit * 1e9 < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_the_port_that_the_exporter_is_given(name):
    container = container_of(overlay(name))
    (port,) = container["ports"]
    assert f"--set=exporter.port={port['containerPort']}" in container["args"]
    assert port["containerPort"] == ExporterSettings().port
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["httpGet"]["path"] for kind, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    # The exporter's own limit decides about the start, so the probe must not be shorter.
    startup = probes["startup"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= ExporterSettings().start_seconds


def test_the_scraper_finds_the_pods():
    (monitor,) = (one for one in build(MANIFESTS / "monitoring") if one["kind"] == "PodMonitor")
    for name in OVERLAYS:
        documents = overlay(name)
        labels = job_of(documents)["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in container_of(documents)["ports"]}
        assert re.fullmatch("nezha.*", labels[monitor["spec"]["jobLabel"]])  # as the rules ask


def test_ranks_find_node_0_by_a_name_that_is_there_before_it_is_ready():
    documents = overlay("indexed-job")
    service, pod = documents["Service"], job_of(documents)["template"]
    host = next(word for word in words_of(documents, 1)[0] if word.startswith("--master=")).removeprefix("--master=")
    assert host == f"{documents['Job']['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]


def test_what_is_made_from_other_files_is_up_to_date():
    stale = [str(path) for path, text in generated().items() if (REPOSITORY / path).read_text(encoding="utf-8") != text]
    assert not stale, "make generated"


def test_a_bad_overlay_is_told_by_kubectl(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    done = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode
    with pytest.raises(AssertionError):
        kubernetes.build(tmp_path)


def test_the_json_of_the_base_is_for_its_gpus():
    written = json.loads((MANIFESTS / "base/ds_config.json").read_text())
    ranks = 2 * 8
    assert written["train_batch_size"] % (ranks * written["train_micro_batch_size_per_gpu"]) == 0


def test_what_the_docs_say_can_be_done(tmp_path):
    text = (REPOSITORY / "docs/kubernetes.md").read_text(encoding="utf-8")
    applied = set(re.findall(r"kubectl (?:apply|delete) -k (\S+)", text))
    assert {str(MANIFESTS.relative_to(REPOSITORY) / name) for name in ("storage", "overlays/indexed-job")} <= applied
    assert all((REPOSITORY / folder / "kustomization.yaml").exists() for folder in applied)
    assert set(FOLDERS) == set(re.findall(r"^\| `([\w/-]+)`", text, re.MULTILINE))
    (own,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    folder = tmp_path / "overlays" / "own"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(own.replace("../../", os.path.relpath(MANIFESTS, folder) + "/"))
    documents = {document["kind"]: document for document in build(folder)}
    assert not [problem for document in documents.values() for problem in problems(document)]
    container = container_of(documents)
    assert container["args"][-1] == "--set=train.steps=100000"
    assert container["image"] == "your/nezha-ds:cuda"
    assert any("s3://" in word for word in container["args"])
