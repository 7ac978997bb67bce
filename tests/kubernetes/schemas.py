"""Every document of a manifest against the schema of its kind; what a cluster would ignore or refuse, in words.

Built-in kinds have JSON schemas. The others have generated types, which ignore what they do not know: a document must
come out of them as it went in.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kubernetes_validate
from cloudcoil.models.prometheus_operator import v1 as prometheus
from kubeflow_trainer_api import models as kubeflow
from pydantic import BaseModel, ValidationError

KUBERNETES = "1.33"
"""The oldest release that we look at; what it knows, later ones know."""

_TYPES: Mapping[tuple[str, str], type[BaseModel]] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): kubeflow.JobsetV1alpha2JobSet,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): kubeflow.TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): kubeflow.TrainerV1alpha1TrainingRuntime,
    ("monitoring.coreos.com/v1", "PodMonitor"): prometheus.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
}


def problems(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a document; nothing, if a cluster would take it as it is meant."""
    kind = _TYPES.get((document["apiVersion"], document["kind"]))
    return list(_by_type(kind, document) if kind else _by_schema(document))


def _by_schema(document: Mapping[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(dict(document), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


def _by_type(kind: type[BaseModel], document: Mapping[str, Any]) -> Iterator[str]:
    # Kubeflow's types write by a method of their own.
    read: Callable[[Any], Any] = getattr(kind, "from_dict", kind.model_validate)
    try:
        value = read(document)
    except ValidationError as error:
        yield from (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return
    written = value.to_dict() if hasattr(value, "to_dict") else value.model_dump(mode="json", by_alias=True)
    yield from _changes(document, written, document["kind"])


def _changes(given: Any, written: Any, path: str) -> Iterator[str]:
    """What a round trip left out or changed; not what it filled in."""
    if isinstance(given, Mapping) and isinstance(written, Mapping):
        for name, value in given.items():
            if name in written:
                yield from _changes(value, written[name], f"{path}.{name}")
            else:
                yield f"{path}: unknown {name}"
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, (one, other) in enumerate(zip(given, written, strict=True)):
            yield from _changes(one, other, f"{path}[{number}]")
    elif given != written:
        yield f"{path}: {given!r} became {written!r}"
