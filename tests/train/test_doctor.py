import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import nezha_ds.train.doctor as doctor
from nezha_ds.files import sha256_of
from nezha_ds.train.doctor import GIB, Finding
from tests.helpers.ranks import free_port


def test_a_machine_that_passes_the_tests_has_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    findings = doctor.examine(tmp_path)
    assert [finding for finding in findings if finding.status == "failure"] == []
    assert len({finding.name for finding in findings}) == len(findings) == 13
    assert all(bool(finding.cure) == (finding.status != "ok") for finding in findings)


def test_only_a_failure_changes_the_exit_code(capsys):
    fine = [Finding("disk", "ok", "9 GiB"), Finding("MPI", "warning", "[none]", "install it")]
    assert doctor.exit_code(fine) == 0
    assert doctor.exit_code([*fine, Finding("ninja", "failure", "gone", "bring it back")]) == 2
    doctor.show(fine, Console(width=40))
    assert capsys.readouterr().out.splitlines() == [
        "ok       disk             9 GiB",
        "warning  MPI              [none]",
        "                          → install it",
    ]


def test_an_old_python():
    assert doctor.check_python((3, 10, 12)).status == "failure"
    assert doctor.check_python((3, 13, 0)).status == "ok"


def test_deepspeed_not_installed(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    assert doctor.check_deepspeed() == Finding("DeepSpeed", "failure", "not installed", "pip install deepspeed")


def test_torch_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.check_torch().status == "failure"


@pytest.mark.parametrize(("devices", "fp16", "status"), [(8, True, "ok"), (1, False, "warning"), (0, True, "failure")])
def test_accelerators(devices, fp16, status):
    info = SimpleNamespace(name="cuda", devices=devices, fp16=fp16, bf16=True)
    finding = doctor.check_accelerator(lambda: info)
    assert finding.status == status
    assert finding.value.startswith(f"{devices} × cuda")


def test_a_deepspeed_that_does_not_load():
    def broken():
        raise RuntimeError("no driver")

    finding = doctor.check_accelerator(broken)
    assert (finding.status, finding.value) == ("failure", "RuntimeError: no driver")


def test_no_compiler_and_no_ninja(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert [doctor.check_compiler().status, doctor.check_ninja().status] == ["failure", "failure"]
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "clang++")
    assert doctor.check_compiler() == Finding("C++ compiler", "ok", str(compiler))


def test_no_compiler_is_needed_where_deepspeed_came_compiled(monkeypatch, tmp_path):
    built = tmp_path / "deepspeed/ops/comm"
    built.mkdir(parents=True)
    (tmp_path / "deepspeed/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.check_compiler().status == "failure"
    (built / "deepspeed_shm_comm_op.cpython-311-x86_64-linux-gnu.so").touch()
    assert doctor.check_compiler().status == "ok"


def test_the_cure_for_ninja_depends_on_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert doctor.check_ninja().cure == "pip install ninja"
    (tmp_path / "ninja").touch()
    assert doctor.check_ninja().cure == f"export PATH={tmp_path}:$PATH"


def test_no_mpi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    finding = doctor.check_mpi()
    assert (finding.status, finding.value) == ("warning", "without mpi4py, libmpi, mpirun")


@pytest.mark.parametrize(("free", "status"), [(0.5, "failure"), (5, "warning"), (50, "ok")])
def test_little_disk_for_a_folder_that_is_not_there_yet(monkeypatch, tmp_path, free, status):
    asked = []
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=int(free * GIB))
    )
    assert doctor.check_disk(tmp_path / "runs" / "new").status == status
    assert asked == [tmp_path]


def test_little_memory(tmp_path):
    assert doctor.check_memory(2 * GIB).status == "warning"
    assert doctor.check_memory(64 * GIB).status == "ok"


def test_a_container_has_what_its_limit_leaves(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 999 kB\nMemAvailable:   {64 << 20} kB\n")
    assert doctor.available_memory(meminfo, tmp_path) == 64 * GIB
    (tmp_path / "memory.max").write_text(f"{8 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    assert doctor.available_memory(meminfo, tmp_path) == 5 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.available_memory(meminfo, tmp_path) == 64 * GIB


# ---------------------------------------------------------------------------------------------------------------- ports


def test_taken_ports(monkeypatch):
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(port))
        assert doctor.check_rendezvous_port().value == f"{port} is taken"
        assert doctor.check_rendezvous_port().status == "failure"
        assert doctor.check_exporter_port(port).status == "warning"
    assert doctor.check_rendezvous_port().status == "ok"
    assert doctor.check_exporter_port(port).status == "ok"


@pytest.mark.parametrize("text", ["", "http", "99999"])
def test_a_port_that_is_none(monkeypatch, text):
    monkeypatch.setenv("MASTER_PORT", text)
    assert doctor.check_rendezvous_port().status == "failure"


# ---------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("place", ["deepspeed_shm_comm", "py311_cpu/deepspeed_shm_comm"])
def test_a_stale_lock_is_named_and_its_cure_works(tmp_path, place):
    lock = make_lock(tmp_path / place)
    later = lock.stat().st_mtime + doctor.STALE_SECONDS + 1
    finding = doctor.check_extension_locks(tmp_path, now=later)
    assert (finding.status, finding.cure) == ("failure", f"rm {lock}")
    Path(finding.cure.removeprefix("rm ")).unlink()
    assert doctor.check_extension_locks(tmp_path, now=later).status == "ok"


def test_a_fresh_lock_of_nobody_here_may_be_another_machines(tmp_path):
    lock = make_lock(tmp_path / "deepspeed_shm_comm")
    finding = doctor.check_extension_locks(tmp_path, now=lock.stat().st_mtime + 5)
    assert finding.status == "warning" and str(lock) in finding.cure


def test_a_lock_that_is_held_is_in_use_however_old(tmp_path):
    lock = make_lock(tmp_path / "deepspeed_shm_comm")
    later = lock.stat().st_mtime + 10 * doctor.STALE_SECONDS
    with lock.open():
        assert doctor.check_extension_locks(tmp_path, now=later).status == "ok"
    assert doctor.check_extension_locks(tmp_path, now=later).status == "failure"


def test_it_is_torchs_own_lock_that_is_found(tmp_path):
    """While torch's baton is held the lock is in use; after its holder was killed, it is stale."""
    from torch.utils.file_baton import FileBaton

    (tmp_path / "extension").mkdir()
    baton = FileBaton(str(tmp_path / "extension" / "lock"))
    assert baton.try_acquire()
    later = (tmp_path / "extension" / "lock").stat().st_mtime + 2 * doctor.STALE_SECONDS
    assert doctor.check_extension_locks(tmp_path, now=later).status == "ok"
    os.close(baton.fd)  # what the kernel does when it kills the holder
    assert doctor.check_extension_locks(tmp_path, now=later).status == "failure"


def test_where_extensions_are(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert doctor.extensions_folder() == tmp_path
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = doctor.extensions_folder()
    assert folder.is_relative_to(tmp_path)
    assert folder.name == socket.gethostname()


def make_lock(folder):
    folder.mkdir(parents=True)
    lock = folder / "lock"
    lock.touch()
    return lock


# ------------------------------------------------------------------------------------------------------- shipped files


def test_the_notice_names_every_shipped_file():
    notice = (doctor.ASSETS / "NOTICE").read_text(encoding="utf-8")
    there = {path.name for path in doctor.ASSETS.iterdir()} - {"NOTICE"}
    assert doctor.shipped_hashes(notice).keys() == there


@pytest.fixture
def assets(tmp_path):
    return shutil.copytree(doctor.ASSETS, tmp_path / "assets")


def test_a_changed_vocabulary_is_named(assets):
    assert doctor.check_assets(assets).status == "ok"
    vocabulary = assets / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes().replace(b"[MASK]", b"[mask]"))
    finding = doctor.check_assets(assets)
    assert (finding.status, finding.value) == ("failure", "changed: vocab.txt")


def test_missing_files_are_a_failure(assets):
    (assets / "sanguo.txt.xz").unlink()
    assert "sanguo.txt.xz" in doctor.check_assets(assets).value
    (assets / "NOTICE").write_text("nothing")
    assert doctor.check_assets(assets).status == "failure"
    (assets / "NOTICE").unlink()
    assert doctor.check_assets(assets).status == "failure"


def test_hashes_are_read_wherever_they_stand_in_an_entry(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    digest = sha256_of(file)
    notice = f"Words.\n\na.txt\n  By A.\n  SHA-256 {digest}.\n  More.\n\nb.txt\n  SHA-256 {digest[::-1]}\n"
    assert doctor.shipped_hashes(notice) == {"a.txt": digest, "b.txt": digest[::-1]}
