"""A run whose shards lie in a bucket: real ranks, a real store."""

import re
from pathlib import Path

import pytest

from nezha_ds.config import build
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.train.recipe import Recipe
from nezha_ds.train.source import check_source, prepare_if_missing
from tests.helpers import runs

SHORT = ("train.steps=3", "train.save_every=3", "train.eval_samples=8")


@pytest.mark.ranks
def test_ranks_train_on_a_bucket_as_on_a_folder(embedded, store, tmp_path, warm):
    uri, cache = store.upload(embedded, "trained/prepared"), tmp_path / "cache"
    far = runs.make(tmp_path / "far", Path("unused"), f"data.shards={uri}", f"data.cache={cache}", *SHORT)
    near = runs.make(tmp_path / "near", embedded, *SHORT)
    assert re.search(r"[1-9]\d* shards \(0\.0\d GB\) fetched", far.finish(2))
    near.finish(2)
    assert far.losses() == near.losses() != {}
    shards = sorted(path.name for path in embedded.glob("*.arrow"))
    assert sorted(path.name for path in cache.glob("*/shards/*")) == shards


def recipe(uri: str, cache: Path, limit: float = 1.0) -> Recipe:
    data = {"shards": uri, "cache": str(cache), "cache_limit": limit}
    return build(Recipe, {"run": {"folder": "run", "prepare": ["embedded"]}, "data": data}, "a test")


def test_nothing_is_prepared_into_a_bucket_and_what_is_missing_there_is_told_before_ranks_meet(store, tmp_path):
    store.put("bare/other", b"")
    bare = recipe("s3://bare/prepared", tmp_path)
    prepare_if_missing(bare)
    with pytest.raises(DataError, match=r"s3://bare/prepared has no manifest\.json.*aws s3 sync"):
        check_source(bare)


def test_a_cache_that_cannot_hold_what_is_in_use_is_refused_before_ranks_meet(embedded, store, tmp_path):
    uri = store.upload(embedded, "trained/prepared")
    with pytest.raises(ConfigError, match=r"data\.cache_limit = 0\.001 GB is too little"):
        check_source(recipe(uri, tmp_path, 0.001))
