"""The run that others are held against, made once for all files."""

import pytest

from tests.helpers import runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, warm, embedded):
    """Twelve steps on two ranks in bf16 under ZeRO-1, dropout on, with checkpoints at 4, 8 and 12."""
    run = runs.make(tmp_path_factory.mktemp("undisturbed"), embedded, **runs.BF16)
    run.finish(world_size=2)
    return run
