"""`nezha-ds doctor`: is this machine fit for a run, and what mends it if not.

Every check looks at one thing, returns one `Finding`, and knows its own cure. A failure is what would stop a run or
make it wait for ever; a warning is what would make it slow, small or unwatched. Two seconds in all, most of them torch
and DeepSpeed being imported.
"""

import ctypes.util
import importlib.metadata
import importlib.util
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

import nezha_ds
from nezha_ds.errors import DataError, NezhaError
from nezha_ds.files import sha256_of
from nezha_ds.observe.exporter import ExporterSettings
from nezha_ds.train.extensions import extensions_folder, find_locks, is_held, is_prebuilt
from nezha_ds.world import variable

if TYPE_CHECKING:
    from nezha_ds.train.engine import AcceleratorInfo

Status = Literal["ok", "warning", "failure"]

GIB = 1 << 30
DISK_WARNING, DISK_FAILURE = 10 * GIB, 1 * GIB
"""A checkpoint of NEZHA-base holds 102M parameters at 12 bytes, 1.2 GB, and two of them exist while one is replaced."""
MEMORY_WARNING = 4 * GIB
"""NEZHA-base needs 16 bytes a parameter for weights, gradients and moments, 1.6 GB, before any activation."""
STALE_SECONDS = 600
"""An extension compiles in under a minute; on a slow shared disk in a few."""
ASSETS = Path(nezha_ds.__file__).parent / "assets"

_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What one check saw, and what to do about it; no cure is needed where all is well."""

    name: str
    status: Status
    value: str
    cure: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """All checks, for a run whose folder would be `folder`."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_torch,
        check_deepspeed,
        check_accelerator,
        check_compiler,
        check_ninja,
        check_extension_locks,
        lambda: check_disk(folder),
        check_memory,
        check_rendezvous_port,
        check_exporter_port,
        check_mpi,
        check_assets,
    )
    return [check() for check in checks]


def show(findings: Iterable[Finding], console: Console | None = None) -> None:
    """One line a finding, and its cure under it."""
    console = console or Console()
    for finding in findings:
        line = Text(f"{finding.status:<8}", style=_STYLES[finding.status])
        line.append(f" {finding.name:<16} {finding.value}", style="default")
        console.print(line, soft_wrap=True)
        if finding.cure:
            console.print(Text(f"{'':<26}→ {finding.cure}"), soft_wrap=True)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 unless something failed; then 2, as for every error that the user can mend."""
    return NezhaError.exit_code if any(finding.status == "failure" for finding in findings) else 0


# --------------------------------------------------------------------------------------------------------- the software


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """3.11 or newer."""
    text = ".".join(map(str, version))
    if version[:2] < (3, 11):
        return Finding("Python", "failure", text, "install Python 3.11 or newer")
    return Finding("Python", "ok", text)


def check_torch() -> Finding:
    """Whether torch loads, and what it may use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "failure", str(error), "pip install torch, for this machine's accelerator")
    capability = torch.backends.cpu.get_cpu_capability()
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}")


def check_deepspeed() -> Finding:
    """Whether DeepSpeed is installed; its loading is the accelerator's check."""
    try:
        return Finding("DeepSpeed", "ok", importlib.metadata.version("deepspeed"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("DeepSpeed", "failure", "not installed", "pip install deepspeed")


def check_accelerator(describe: "Callable[[], AcceleratorInfo] | None" = None) -> Finding:
    """What DeepSpeed runs on and in which precisions."""
    try:
        info = (describe or _describe_accelerator)()
    except Exception as error:  # DeepSpeed probes drivers and compilers as it loads: anything may come out of it.
        return Finding("accelerator", "failure", f"{type(error).__name__}: {error}", "mend DeepSpeed: run ds_report")
    precisions = f"fp16 {'yes' if info.fp16 else 'no'}, bf16 {'yes' if info.bf16 else 'no'}"
    value = f"{info.devices} × {info.name}, {precisions}"
    if info.devices == 0:
        return Finding("accelerator", "failure", value, "make a device visible to this process")
    if not info.fp16:
        cure = (
            "take a bf16 or fp32 JSON of ds_configs here; an fp16 one runs slowly, for tests, with train.emulate_fp16"
        )
        return Finding("accelerator", "warning", value, cure)
    return Finding("accelerator", "ok", value)


def _describe_accelerator() -> "AcceleratorInfo":
    from nezha_ds.train.engine import describe_accelerator

    return describe_accelerator()


def check_compiler() -> Finding:
    """DeepSpeed compiles its shared-memory collectives at first use on the CPU."""
    name = variable("CXX", "c++")
    path = shutil.which(name)
    if path is None and is_prebuilt():
        return Finding("C++ compiler", "ok", "none, and none needed: DeepSpeed was installed compiled")
    if path is None:
        return Finding("C++ compiler", "failure", f"no {name} on PATH", "install g++, or set CXX to a compiler")
    return Finding("C++ compiler", "ok", path)


def check_ninja() -> Finding:
    """Without ninja torch builds no extension."""
    path = shutil.which("ninja")
    if path is None:
        # pip puts it beside the interpreter, where torch does not look unless the environment is activated.
        beside = Path(sys.executable).parent
        cure = f"export PATH={beside}:$PATH" if (beside / "ninja").exists() else "pip install ninja"
        return Finding("ninja", "failure", "not on PATH", cure)
    return Finding("ninja", "ok", path)


def check_mpi() -> Finding:
    """Whether `mpirun` could start ranks; nothing else needs it."""
    missing = [
        name
        for name, there in (
            ("mpi4py", importlib.util.find_spec("mpi4py") is not None),
            ("libmpi", ctypes.util.find_library("mpi") is not None),
            ("mpirun", shutil.which("mpirun") is not None),
        )
        if not there
    ]
    if missing:
        cure = "for mpirun only: install Open MPI and pip install 'nezha-ds[mpi]'"
        return Finding("MPI", "warning", f"without {', '.join(missing)}", cure)
    return Finding("MPI", "ok", "mpi4py, libmpi, mpirun")


def check_assets(folder: Path = ASSETS) -> Finding:
    """Whether the shipped vocabulary and texts are the ones that NOTICE vouches for."""
    try:
        shipped = shipped_hashes((folder / "NOTICE").read_text(encoding="utf-8"))
        damaged = [name for name, digest in shipped.items() if sha256_of(folder / name) != digest]
    except (OSError, DataError) as error:
        return Finding("shipped files", "failure", str(error), "install nezha_ds again")
    if damaged:
        return Finding("shipped files", "failure", f"changed: {', '.join(damaged)}", "install nezha_ds again")
    return Finding("shipped files", "ok", f"{', '.join(shipped)} intact")


def shipped_hashes(notice: str) -> dict[str, str]:
    """File name to SHA-256, as the NOTICE lists them: a name at the margin, its hash indented below."""
    pairs = re.findall(r"^(\S+)\n(?:  .*\n)*?  SHA-256 ([0-9a-f]{64})", notice, re.MULTILINE)
    if not pairs:
        raise DataError("NOTICE lists no file with its SHA-256")
    return dict(pairs)


# ---------------------------------------------------------------------------------------------------------- the machine


def check_disk(folder: Path) -> Finding:
    """Free space where the run would write."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    value = f"{free / GIB:.1f} GiB free at {there}"
    cure = "free space, or choose a run folder on another disk"
    if free < DISK_FAILURE:
        return Finding("disk", "failure", value, cure)
    return Finding("disk", "warning", value, cure) if free < DISK_WARNING else Finding("disk", "ok", value)


def check_memory(available: int | None = None) -> Finding:
    """Memory that this process may still take, in bytes."""
    free = available_memory() if available is None else available
    value = f"{free / GIB:.1f} GiB available"
    if free < MEMORY_WARNING:
        return Finding("memory", "warning", value, "NEZHA-base needs more: raise the limit, or train a smaller model")
    return Finding("memory", "ok", value)


def available_memory(meminfo: Path = Path("/proc/meminfo"), control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes available: the kernel's estimate, or what the container's limit leaves, whichever is less."""
    kernel = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    free = int(kernel[1]) * 1024 if kernel else sys.maxsize
    limit = _content(control_group / "memory.max")
    # "max" means no limit.
    return min(free, int(limit) - int(_content(control_group / "memory.current"))) if limit.isdigit() else free


def _content(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def check_rendezvous_port() -> Finding:
    """Where rank 0 waits for the others."""
    text = variable("MASTER_PORT", "29500")
    if text.isdigit() and is_free(int(text)):
        return Finding("rendezvous port", "ok", text)
    cure = "end the run that holds it, or choose another: deepspeed --master_port N, or MASTER_PORT=N"
    return Finding("rendezvous port", "failure", f"{text} is taken" if text.isdigit() else f"{text!r}", cure)


def check_exporter_port(port: int = ExporterSettings().port) -> Finding:
    """Where Prometheus will look; the exporter moves on by itself when it is taken."""
    if is_free(port):
        return Finding("exporter port", "ok", str(port))
    return Finding("exporter port", "warning", f"{port} is taken", "let Prometheus scrape the next ports too")


def is_free(port: int) -> bool:
    """Whether a server could listen on the port, on any address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that has just been closed does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True


# ------------------------------------------------------------------------------------------------------ extension locks


def check_extension_locks(root: Path | None = None, now: float | None = None) -> Finding:
    """Locks that a killed compilation left behind: every later run waits for them, for ever and in silence.

    A run of ours removes them; other programs wait. One that nobody here holds may belong to another machine on a
    shared disk; after ten minutes it does not.
    """
    root = root or extensions_folder()
    now = time.time() if now is None else now
    idle = {lock: state for lock, state in find_locks(root).items() if not is_held(state)}
    stale = [lock for lock, state in idle.items() if now - state.st_mtime > STALE_SECONDS]
    if stale:
        cure = f"rm {' '.join(map(str, stale))}"
        return Finding("extension locks", "failure", f"{len(stale)} left by a killed compilation", cure)
    if idle:
        cure = f"if no other machine compiles there, rm {' '.join(map(str, idle))}"
        return Finding("extension locks", "warning", f"{len(idle)} that no process here holds", cure)
    return Finding("extension locks", "ok", f"none stale in {root}")
