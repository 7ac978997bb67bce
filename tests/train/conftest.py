"""The run that others are held against, made once for all files."""

import pytest

from tests.helpers import ranks, runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, warm, embedded):
    """Twelve steps under `deepspeed` on two ranks in bf16 and ZeRO-1, dropout on, with checkpoints at 4, 8 and 12."""
    run = runs.make(tmp_path_factory.mktemp("undisturbed"), embedded, **runs.BF16)
    ranks.run_well(ranks.command(runs.SCRIPT, *run.arguments, ranks=2))
    return run
