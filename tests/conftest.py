"""What the whole suite shares: a folder of compiled extensions, the shipped text prepared, and no skips in CI."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from tests.helpers import ranks, runs, s3

if not torch.cuda.is_available():
    # Triton decides as it is imported, gluon too, whether it will run kernels without a GPU. Programs that tests start
    # decide for themselves.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in ("triton.experimental.gluon", "nezha_ds.model.kernels"):
            importlib.import_module(name)

# Time limits fail on a busy machine, and CI tries the examples that were tried before: what chance finds is for us.
# A fixture of a function may serve many examples where it is a folder to write into.
UNCHECKED = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile("patient", deadline=None, suppress_health_check=UNCHECKED, print_blob=True)
settings.register_profile("repeatable", settings.get_profile("patient"), derandomize=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "patient")


@pytest.fixture(scope="session", autouse=True)
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TORCH_EXTENSIONS_DIR of the tests' own: two ranks that compile at once have died on a half-built file."""
    folder = tmp_path_factory.mktemp("extensions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def warm(extensions: Path) -> None:
    """Compile DeepSpeed's CPU communication once, in one process."""
    code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"
    subprocess.run([sys.executable, "-c", code], env=ranks.environment(extensions), check=True, capture_output=True)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped corpus, prepared."""
    folder = tmp_path_factory.mktemp("shards") / "embedded"
    prepare(PrepareSettings(out=folder), progress=False)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: None, embedded: Path) -> runs.Run:
    """What others are held against: twelve steps under `deepspeed` on two ranks in bf16 and ZeRO-1, with dropout, and
    checkpoints at 4, 8 and 12.
    """
    run = runs.make(tmp_path_factory.mktemp("undisturbed"), embedded, **runs.BF16)
    ranks.run_well(ranks.command(runs.SCRIPT, *run.arguments, ranks=2))
    return run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Store]:
    """A running S3 store, which this process finds as its endpoint."""
    with s3.serve(tmp_path_factory.mktemp("s3") / "store") as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In CI, and nowhere else, a test about a moment is tried once more before it counts as failed."""
    for item in items:
        if os.environ.get("CI") and item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skipped test is a failed one, unless it needs a GPU."""
    outcome = yield
    report = outcome.get_result()
    if (
        report.skipped
        and os.environ.get("CI")
        and not item.get_closest_marker("gpu")
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
