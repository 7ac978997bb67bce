"""What a rank finds on its own machine: software, cores, memory, limits. Half a second, most of it hashing our code."""

import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import nezha_ds
from nezha_ds.errors import NezhaError
from nezha_ds.train.cluster.survey import Machine
from nezha_ds.train.doctor import (
    Finding,
    available_memory,
    check_assets,
    check_compiler,
    check_extension_locks,
    check_ninja,
)
from nezha_ds.world import World, search_programs_in, threads_per_rank

if TYPE_CHECKING:
    from nezha_ds.train.recipe import Recipe

PACKAGES = ("deepspeed", "numpy", "pyarrow")


def look(world: World, recipe: "Recipe | None") -> Machine:
    """This rank's machine."""
    soft_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shm = Path("/dev/shm")  # noqa: S108 - looked at, not written
    return Machine(
        software=software(recipe),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        threads=threads_per_rank(world),
        memory=available_memory(),
        temporary=shutil.disk_usage(tempfile.gettempdir()).free,
        shm=shutil.disk_usage(shm).free if shm.exists() else 0,
        open_files=sys.maxsize if soft_files == resource.RLIM_INFINITY else soft_files,
        locked_memory=None if locked == resource.RLIM_INFINITY else locked,
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        findings=_findings() if world.is_node_main else (),
    )


def software(recipe: "Recipe | None") -> dict[str, str]:
    """What must be the same on every node, by name."""
    found = {
        "our code": _hash_of_code(Path(nezha_ds.__file__).parent),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if recipe:
        found["recipe"] = _digest(recipe.model_dump_json().encode())
        found["shards"] = _fingerprint(recipe)
    return found


def _findings() -> tuple[Finding, ...]:
    # pip puts ninja beside this Python, where a run looks for it too.
    search_programs_in(str(Path(sys.executable).parent))
    checks = [check_extension_locks(), check_assets()]
    if not torch.cuda.is_available():
        # There DeepSpeed compiles its collectives at the first start.
        checks += [check_compiler(), check_ninja()]
    return tuple(finding for finding in checks if finding.status != "ok")


def _fingerprint(recipe: "Recipe") -> str:
    from nezha_ds.data.mixture import fingerprint_of, read_manifests

    try:
        return fingerprint_of(recipe.data, read_manifests(recipe.data))[:12]
    except NezhaError as error:
        return str(error)


def _hash_of_code(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*.py"))
    return _digest(json.dumps({str(path.relative_to(folder)): _digest(path.read_bytes()) for path in paths}).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
