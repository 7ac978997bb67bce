"""The shipped corpus, prepared once for the tests that look at it."""

from pathlib import Path

import pytest

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "embedded"
    prepare(PrepareSettings(out=folder, workers=1), progress=False)
    return folder
