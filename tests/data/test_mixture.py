"""A mixture is each of its texts at its own pace, in turns that only the weights and the sample number decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE
from nezha_ds.config import build
from nezha_ds.data.loader import Loader, Stream, build_evaluation, build_loader
from nezha_ds.data.mixture import MixedOrder, Schedule, fingerprint_of, open_mixture, read_manifests
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import ConfigError, DataError
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, random_columns, write_folder

LENGTH = 64
weights = st.lists(st.integers(1, 40), min_size=1, max_size=6)


# --------------------------------------------------------------------------------------------------------- the schedule


@given(weights, st.integers(0, 10**14))
def test_any_samples_in_a_row_hold_each_part_by_its_weight(weights, first):
    schedule = Schedule(weights)
    together = int(schedule.weights.sum())
    parts, turns = schedule.place(np.arange(3 * together) + first)
    held = np.stack([parts == part for part in range(len(weights))])
    counts = np.cumsum(held, axis=1)
    assert np.all(counts[:, together:] - counts[:, :-together] == schedule.weights[:, None])
    assert np.array_equal(schedule.weights * sum(weights), np.array(weights) * together)
    for part in range(len(weights)):
        own = turns[parts == part]
        assert np.array_equal(own, np.arange(len(own)) + own[0])


@given(weights)
def test_turns_are_spread_evenly_from_the_first_sample_on(weights):
    schedule = Schedule(weights)
    together = int(schedule.weights.sum())
    parts, turns = schedule.place(np.arange(together))
    for part, weight in enumerate(schedule.weights.tolist()):
        counts = np.cumsum(parts == part)
        due = weight * np.arange(1, together + 1) / together
        # Half a turn for rounding, and half a turn for each part that rounding of the others may put before it.
        assert np.abs(counts - due).max() <= 0.5 + len(weights) * weight / together / 2 + 1e-9
        assert np.array_equal(turns[parts == part], np.arange(weight))


def test_three_and_one():
    assert Schedule([6, 2]).place(np.arange(8))[0].tolist() == [0, 0, 1, 0, 0, 0, 1, 0]


def test_weights_without_a_common_measure_are_refused():
    with pytest.raises(ConfigError, match=r"weights 999999, 1000000 repeat only after 1,999,999 samples; take smaller"):
        Schedule([999_999, 1_000_000])
    assert Schedule([999_000, 1_000_000]).weights.tolist() == [999, 1000]


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Three preparations: `news` of 5 shards, `law` of 2, `web` of 6 with two weighted sources; `all` with none."""
    root = tmp_path_factory.mktemp("texts")
    write_folder(root / "news", [random_columns(seed, 200) for seed in range(5)], [random_columns(9, 150)])
    write_folder(root / "law", [random_columns(10 + seed, 100) for seed in range(2)], [random_columns(19, 60)])
    columns = [random_columns(20 + seed, 60) for seed in range(6)]
    write_folder(root / "web", columns, [random_columns(29, 40)], weights={"forum": 1, "blog": 2})
    columns = [random_columns(30 + seed, 100) for seed in range(6)]
    write_folder(root / "all", columns, [random_columns(38, 60), random_columns(39, 60)], weights={"a": 0, "b": 0})
    return root


def mixed(texts: Path, **parts: int) -> DataSettings:
    tree = {name: {"shards": str(texts / name), "weight": weight} for name, weight in parts.items()}
    return build(DataSettings, {"mixture": tree, "length": LENGTH}, "a test")


def stream(data: DataSettings, rank: int = 0, size: int = 1, micro_batch: int = 12, seed: int = 3, **rest) -> Stream:
    masking = MaskingSettings(**rest)
    return Stream(data, masking, seed, micro_batch, World(rank, size, 0, 1), SPECIAL, RANDOM_IDS)


def taken(batches: Loader, count: int) -> dict[str, torch.Tensor]:
    made = [next(batches) for _ in range(count)]
    return {name: torch.cat([getattr(one, name) for one in made]) for name in ("sample_ids", "input_ids", "mlm_labels")}


def global_batches(data: DataSettings, steps: int, size: int = 1, micro_batch: int = 12, first: int = 0, **rest):
    parts = []
    for rank in range(size):
        with build_loader(stream(data, rank, size, micro_batch, **rest), global_batch=24, first=first) as batches:
            one = taken(batches, steps * 24 // size // micro_batch)
        parts.append({name: tensor.reshape(steps, 24 // size, -1) for name, tensor in one.items()})
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_each_part_goes_through_its_own_samples_epoch_after_epoch(texts):
    mixture = open_mixture(mixed(texts, news=3, law=1, web=3), "train")
    order = MixedOrder(mixture, seed=5)
    samples, epochs = order.place(np.arange(8 * len(mixture)))
    owners = mixture.owners[mixture.slices(samples).shards]
    names = np.array(mixture.sources)[owners]
    share = {name: float(np.mean(names == name)) for name in mixture.sources}
    expected = {"news": 3 / 7, "law": 1 / 7, "web/forum": 1 / 7, "web/blog": 2 / 7}
    assert share == pytest.approx(expected, abs=1e-3)
    for number, name in enumerate(mixture.sources):
        own, epoch = samples[names == name], epochs[names == name]
        shards = np.flatnonzero(mixture.owners == number)
        whole = mixture.among(shards, np.arange(mixture.size(shards)))
        passes = [own[epoch == at] for at in range(len(own) // len(whole))]
        assert len(passes) >= 3
        for one in passes:
            assert np.array_equal(np.sort(one), np.sort(whole))
        assert not np.array_equal(passes[0], passes[1])
    assert sorted(np.unique(samples)) == list(range(len(mixture)))


def test_ranks_micro_batches_and_restarts_do_not_matter(texts):
    data = mixed(texts, news=3, law=1, web=2)
    expected = global_batches(data, 20)
    for size, micro_batch in [(1, 1), (2, 3), (3, 8), (24, 1)]:
        assert equal(global_batches(data, 20, size, micro_batch), expected)
    rest = global_batches(data, 13, 4, 2, first=7 * 24)
    assert equal(rest, {name: tensor[7:] for name, tensor in expected.items()})
    assert not torch.equal(global_batches(data, 20, seed=4)["sample_ids"], expected["sample_ids"])


def test_names_order_and_common_factors_do_not_change_the_stream(texts):
    one = mixed(texts, news=3, law=1)
    tree = {"b": {"shards": str(texts / "law"), "weight": 2}, "a": {"shards": str(texts / "news"), "weight": 6}}
    other = build(DataSettings, {"mixture": tree, "length": LENGTH}, "a test")
    assert equal(global_batches(one, 5), global_batches(other, 5))
    assert fingerprint_of(one, read_manifests(one)) == fingerprint_of(other, read_manifests(other))


def test_the_fingerprint_tells_texts_and_weights(texts):
    alone = DataSettings(shards=str(texts / "news"))
    settings = [alone, mixed(texts, news=3, law=1), mixed(texts, news=2, law=1), mixed(texts, news=3, web=1)]
    prints = [fingerprint_of(part, read_manifests(part)) for part in settings]
    assert len(set(prints)) == 4
    assert prints[0] == read_manifests(alone)[""].fingerprint
    for data, fingerprint in zip(settings, prints, strict=True):
        with build_loader(stream(data), global_batch=24, first=0) as batches:
            assert batches.fingerprint == fingerprint


def test_a_mixture_of_one_is_the_folder_alone(texts):
    alone = DataSettings(shards=str(texts / "news"), length=LENGTH)
    assert equal(global_batches(alone, 10), global_batches(mixed(texts, news=7), 10))


def test_batches_hold_the_text_of_the_folder_that_the_sample_is_of(texts):
    data = mixed(texts, news=1, law=1, web=1)
    mixture = open_mixture(data, "train")
    made = global_batches(data, 30)
    ids, labels = made["input_ids"].reshape(-1, LENGTH), made["mlm_labels"].reshape(30 * 24, -1)
    assert bool((labels != IGNORE).any(dim=1).all())
    slices = mixture.slices(made["sample_ids"].flatten().numpy())
    folders = {name: open_mixture(data.parts[name], "train") for name in data.parts}
    bounds = np.cumsum([0, *(len(folders[name].counts) for name in read_manifests(data))])
    for row, (shard, start, end) in enumerate(zip(slices.shards, slices.starts, slices.ends, strict=True)):
        folder = int(np.searchsorted(bounds, shard, side="right")) - 1
        columns = folders[[*read_manifests(data)][folder]].columns(int(shard - bounds[folder]))
        seen = ids[row][(ids[row] >= 200) | (ids[row] == SPECIAL.mask)].numpy()
        text = columns.tokens[start:end]
        assert len(seen) == len(text)
        assert np.mean(seen == text) > 0.7


def test_two_texts_share_no_random_numbers(tmp_path):
    """The same shards under two fingerprints: neither order nor masks are alike."""
    columns = [random_columns(seed, 300) for seed in range(3)]
    write_folder(tmp_path / "one", columns)
    write_folder(tmp_path / "two", columns, segmenter={"name": "other", "version": "1", "dictionary_sha256": ""})
    made = global_batches(mixed(tmp_path, one=1, two=1), 40)
    half = len(open_mixture(DataSettings(shards=str(tmp_path / "one"), length=LENGTH), "train"))
    ids, labels = made["sample_ids"].flatten(), made["mlm_labels"].reshape(40 * 24, -1)
    first, second = (
        dict(zip(part[0].tolist(), part[1], strict=True))
        for part in ((ids[ids < half], labels[ids < half]), (ids[ids >= half] - half, labels[ids >= half]))
    )
    assert not np.array_equal([*first][:50], [*second][:50])
    both = [at for at in first if at in second]
    assert len(both) > 50
    assert np.mean([torch.equal(first[at], second[at]) for at in both]) < 0.05


@pytest.mark.parametrize("kind", ["mixture", "folder"])
def test_tokens_are_counted_by_source(texts, kind):
    data = mixed(texts, news=2, web=3) if kind == "mixture" else DataSettings(shards=str(texts / "all"), length=LENGTH)
    mixture = open_mixture(data, "train")
    names = {"mixture": {"news", "web/forum", "web/blog"}, "folder": {"a", "b"}}[kind]
    assert set(mixture.sources) == names
    with build_loader(stream(data), global_batch=24, first=0) as batches:
        for _ in range(3):
            made = taken(batches, 11)
            ids = made["sample_ids"].numpy()
            slices = mixture.slices(ids)
            tokens = np.bincount(mixture.owners[slices.shards], slices.ends - slices.starts, len(names)).astype(int)
            assert batches.take_source_tokens() == dict(zip(mixture.sources, tokens.tolist(), strict=True))
        assert sum(batches.statistics.sources) == batches.statistics.tokens
        assert batches.take_source_tokens() == dict.fromkeys(mixture.sources, 0)


def test_sources_without_weights_are_mixed_by_their_lengths(texts):
    data = DataSettings(shards=str(texts / "all"), length=LENGTH)
    mixture = open_mixture(data, "train")
    assert len(mixture.parts) == 1
    samples, epochs = MixedOrder(mixture, 1).place(np.arange(2 * len(mixture)))
    for epoch in range(2):
        assert sorted(samples[epochs == epoch]) == list(range(len(mixture)))


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("limit", [1, 60, 100_000])
def test_an_evaluation_takes_every_source_by_its_share_whatever_the_ranks(texts, limit):
    data = mixed(texts, news=3, law=1, web=2)
    mixture = open_mixture(data, "heldout")

    def sections(size: int, micro_batch: int) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for rank in range(size):
            with build_evaluation(stream(data, rank, size, micro_batch), limit=limit) as batches:
                for source, count in batches.sections.items():
                    made = taken(batches, count)
                    real = made["sample_ids"] >= 0
                    assert bool((made["mlm_labels"][~real] == IGNORE).all())
                    own = made["sample_ids"][real].tolist()
                    assert found.setdefault(source, set()).isdisjoint(own)
                    found[source].update(own)
                assert next(batches, None) is None
        return found

    found = sections(1, 8)
    # `web` has one held-out shard, of its first source.
    assert [*found] == [name for name in mixture.sources if name != "web/blog"]
    sizes = np.bincount(mixture.owners, mixture.counts).astype(int)
    shares = {"news": 3, "law": 1, "web/forum": 2 * 1 / 3}
    for source, samples in found.items():
        owner = mixture.sources.index(source)
        assert set(mixture.owners[mixture.slices(np.array([*samples])).shards]) == {owner}
        expected = max(1, int(limit * shares[source] / sum(shares.values()) + 1e-9))
        assert len(samples) == min(expected, sizes[owner])
    assert sections(3, 2) == found
    assert sections(2, 1) == found


def test_held_out_samples_are_spread_over_a_text(texts):
    with build_evaluation(stream(DataSettings(shards=str(texts / "all"), length=LENGTH)), limit=20) as batches:
        assert [*batches.sections] == ["a", "b"]
        ids = torch.cat([batch.sample_ids for batch in batches])
    ids = ids[ids >= 0]
    assert len(ids) in (19, 20)
    whole = len(open_mixture(DataSettings(shards=str(texts / "all"), length=LENGTH), "heldout"))
    assert np.histogram(ids, 4, (0, whole))[0].min() >= 4


def test_a_text_without_held_out_documents_is_left_out_of_an_evaluation(texts, tmp_path):
    write_folder(tmp_path / "bare", [random_columns(50, 50)])
    tree = {"news": {"shards": str(texts / "news")}, "bare": {"shards": str(tmp_path / "bare")}}
    data = build(DataSettings, {"mixture": tree, "length": LENGTH}, "a test")
    with build_evaluation(stream(data), limit=10) as batches:
        assert [*batches.sections] == ["news"]
        assert sum((batch.sample_ids >= 0).sum() for batch in batches) == 10
    with pytest.raises(DataError, match="has no held-out documents"):
        build_evaluation(stream(DataSettings(shards=str(tmp_path / "bare"))), limit=10)


# -------------------------------------------------------------------------------------------------------------- refused


TOKENIZER = {"kind": "bert-wordpiece", "lowercase": True, "vocabulary_size": 1000, "vocabulary_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer": TOKENIZER | {"kind": "byte-bpe"}}, r"tokenizers: kind \(b[a-z-]+ and b[a-z-]+\)"),
        ({"tokenizer": TOKENIZER | {"lowercase": False}}, r"tokenizers: lowercase"),
        ({"tokenizer": TOKENIZER | {"vocabulary_size": 999}}, r"tokenizers: vocabulary_size"),
        ({"tokenizer": TOKENIZER | {"vocabulary_sha256": "1" * 64}}, r"tokenizers: vocabulary_sha256"),
        ({"normalisation": "plain/2"}, r"normalisation"),
    ],
)
def test_texts_of_different_tokenizers(texts, tmp_path, changes, named):
    write_folder(tmp_path / "other", [random_columns(50, 50)], **changes)
    tree = {"news": {"shards": str(texts / "news")}, "other": {"shards": str(tmp_path / "other")}}
    data = build(DataSettings, {"mixture": tree}, "a test")
    with pytest.raises(DataError, match=named) as caught:
        build_loader(stream(data), global_batch=24, first=0)
    for said in (str(texts / "news"), str(tmp_path / "other"), "prepare one of them again as the other"):
        assert said in str(caught.value)


def test_another_segmenter_is_no_matter(texts, tmp_path):
    segmenter = {"name": "character", "version": "1", "dictionary_sha256": "2" * 64}
    write_folder(tmp_path / "other", [random_columns(50, 50)], segmenter=segmenter)
    tree = {"news": {"shards": str(texts / "news")}, "other": {"shards": str(tmp_path / "other")}}
    assert len(open_mixture(build(DataSettings, {"mixture": tree}, "a test"), "train").parts) == 2


def test_the_same_text_twice(texts):
    tree = {name: {"shards": str(texts / "news")} for name in ("one", "two")}
    with pytest.raises(DataError, match=r"hold the same text; take one of (one and two|two and one) out of"):
        read_manifests(build(DataSettings, {"mixture": tree}, "a test"))


def test_weights_for_some_sources_only(tmp_path):
    write_folder(tmp_path, [random_columns(seed, 50) for seed in range(2)], weights={"forum": 2, "blog": 0})
    with pytest.raises(DataError, match=r"has weights for some of its sources and none for blog; prepare again"):
        open_mixture(DataSettings(shards=str(tmp_path)), "train")


def test_a_weighted_source_that_has_no_documents(tmp_path):
    write_folder(tmp_path, [random_columns(1, 50)], weights={"forum": 2, "blog": 1})
    with pytest.raises(DataError, match=r"source blog of .* has no documents to train on; prepare more of it"):
        build_loader(stream(DataSettings(shards=str(tmp_path))), global_batch=24, first=0)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "the folder has no name; give shards the one"),
        ({"shards": "x", "mixture": {"a": {"shards": "y"}}}, "shards 'x' and a mixture of a are both given; remove"),
        ({"mixture": {"a": {"shards": "y", "weight": 0}}}, "mixture.a.weight: 0 leaves nothing of this text; take 1"),
        ({"mixture": {"a": {"shards": "y", "weight": 0.5}}}, "mixture.a.weight = 0.5: input should be a valid integer"),
        ({"mixture": {"a": {"shards": ""}}}, "the folder of 'a' has no name"),
        ({"mixture": {"a/b": {"shards": "y"}}}, "'a/b' is no name for a text; take letters, digits"),
        ({"mixture": {"a": {"shards": "y", "wieght": 3}}}, "unknown key 'mixture.a.wieght'; did you mean 'weight'"),
        ({"mixture": {"a": {}}}, "mixture.a.shards"),
        ({"mixture": {"a": "folder"}}, "mixture.a = 'folder'"),
    ],
)
def test_settings_that_cannot_be(tree, message):
    with pytest.raises(ConfigError, match=message):
        build(DataSettings, tree, "recipe.toml")


def test_no_shard_is_opened_twice_in_an_epoch(tmp_path):
    """Twenty weighted sources have twenty windows of eight shards, all of them read at the same time."""
    write_folder(tmp_path, [random_columns(seed, 20) for seed in range(160)], weights={f"s{n}": 1 for n in range(20)})
    data = DataSettings(shards=str(tmp_path), length=LENGTH)
    mixture = open_mixture(data, "train")
    order, pipeline = MixedOrder(mixture, 3), stream(data).pipeline(mixture)
    for at in range(0, len(mixture), 24):
        pipeline.make(*order.place(np.arange(24) + at))
    (dataset,) = mixture._datasets
    assert dataset.columns.cache_info().misses == 160


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**6))
def test_the_turn_of_each_part_from_a_sample_number_on_is_that_of_its_next_sample(weights, number):
    schedule = Schedule(weights)
    parts, turns = schedule.place(np.arange(number, number + int(schedule.weights.sum())))
    for part in range(len(weights)):
        assert schedule.turn(part, number) == turns[np.argmax(parts == part)]
