"""Samples of every format equal a plain reference, lose no token, and pairs are what their labels say."""

import logging
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nezha_ds.batch import IGNORE, Batch
from nezha_ds.data.collate import gather
from nezha_ds.data.dataset import PADDING, Seconds, Slices, open_dataset
from nezha_ds.data.formats import ATTEMPTS, FORMATS, LOOK_BACK, ORDERED, doc_sentences, full_sentences, segment_pair
from nezha_ds.data.loader import Stream, build_loader
from nezha_ds.data.pipeline import Pipeline
from nezha_ds.data.plan import load_plan
from nezha_ds.data.randomness import Purpose, draws, key_of
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import Columns
from nezha_ds.world import World
from tests.data.folders import RANDOM_IDS, SPECIAL, documents, random_columns, slow_row, to_columns, write_folder

PAIRS = ["segment-pair", "sentence-pair"]
ORIGINALS = [random_columns(seed, 300) for seed in range(3)]


def number(shard: int, at: int, purpose: Purpose) -> int:
    return int(draws(key_of(shard), np.array([at], np.uint64), purpose)[0])


def share(shard: int, at: int, purpose: Purpose) -> float:
    return (number(shard, at, purpose) >> 11) * 2**-53


def below(shard: int, at: int, purpose: Purpose, bound: int) -> int:
    return (number(shard, at, purpose) >> 32) * bound >> 32


def slow_pieces(columns: Columns, longest: int) -> list[list[tuple[int, int]]]:
    """Sentences by document, the long ones cut."""
    starts = columns.sentences.tolist()
    pieces: list[list[tuple[int, int]]] = []
    for start, end in zip(starts, [*starts[1:], len(columns.tokens)], strict=True):
        if start in columns.documents:
            pieces.append([])
        while end - start > longest:
            cuts = [cut for cut in range(start + longest, start + longest - LOOK_BACK, -1) if cut > start]
            cut = next((cut for cut in cuts if columns.word_starts(np.array([cut]))[0]), start + longest)
            pieces[-1].append((start, cut))
            start = cut
        pieces[-1].append((start, end))
    return pieces


def slow_target(shard: int, at: int, capacity: int, short_rate: float) -> int:
    if share(shard, at, Purpose.SHORT) < short_rate:
        return 2 + below(shard, at, Purpose.TARGET, capacity - 1)
    return capacity


def slow_doc_sentences(columns: Columns, length: int, short_rate: float, shard: int) -> list[tuple[int, int]]:
    samples, at = [], 0
    for document in slow_pieces(columns, length - 2):
        first = 0
        while first < len(document):
            target = slow_target(shard, at + first, length - 2, short_rate)
            last = first + 1
            while last < len(document) and document[last][1] - document[first][0] <= target:
                last += 1
            samples.append((document[first][0], document[last - 1][1]))
            first = last
        at += len(document)
    return samples


def slow_pairs(columns: Columns, length: int, short_rate: float, shard: int, most: int) -> list[tuple[int, ...]]:
    """The generator of pairs, document after document and sentence after sentence."""
    capacity, samples, at, debt = length - 3, [], 0, 0
    by_document = slow_pieces(columns, (length - 3) // 2)
    flat = [(number, piece) for number, document in enumerate(by_document) for piece in document]
    for owner, document in enumerate(by_document):
        first = 0
        while first < len(document):
            here = at + first
            target = slow_target(shard, here, capacity, short_rate)
            chunk = document[first : first + 2]
            for piece in document[first + 2 : first + 2 * most]:
                if piece[1] - chunk[0][0] <= target:
                    chunk.append(piece)
                else:
                    break
            random = share(shard, here, Purpose.NEXT) < 0.5
            if len(chunk) == 1:
                debt += not random
                random = True
            elif random and debt:
                debt -= 1
                random = False
            cut = 1 + below(shard, here, Purpose.CUT, max(len(chunk) - 1, 1))
            start, end = chunk[0][0], chunk[cut - 1][1]
            if random:
                room = capacity - (end - start)
                candidates = [piece for number, piece in flat if number != owner]
                for attempt in range(ATTEMPTS):
                    second = candidates[below(shard, here * ATTEMPTS + attempt, Purpose.OTHER, len(candidates))]
                    if second[1] - second[0] <= room:
                        break
                begin, stop = second
                (source,) = (part for part in by_document if second in part)
                for piece in source[source.index(second) + 1 :][: most - 1]:
                    if piece[1] - begin > target - (end - start):
                        break
                    stop = piece[1]
                if stop - begin > room:
                    cuts = [max(begin + room - back, begin + 1) for back in range(LOOK_BACK)]
                    stop = next((c for c in cuts if columns.word_starts(np.array([c]))[0]), begin + room)
                samples.append((start, end, begin, stop, 1))
                first += cut
            else:
                samples.append((start, end, end, chunk[-1][1], 0))
                first += len(chunk)
        at += len(document)
    return samples


def slow_ordered(columns: Columns, length: int, short_rate: float, shard: int, most: int) -> list[tuple[int, ...]]:
    """Pairs of one document, sentence after sentence; before a last one a run of three or more keeps it company."""
    samples, at = [], 0
    for document in slow_pieces(columns, (length - 3) // 2):
        first = 0
        while first < len(document):
            here = at + first
            target = slow_target(shard, here, length - 3, short_rate)
            count = 2
            while count < 2 * most and first + count < len(document):
                if document[first + count][1] - document[first][0] > target:
                    break
                count += 1
            chunk = document[first : first + count]
            if len(chunk) > 2 and len(document) - first - len(chunk) == 1:
                chunk.pop()
            cut = 1 + below(shard, here, Purpose.CUT, max(len(chunk) - 1, 1))
            samples.append((chunk[0][0], chunk[cut - 1][1], chunk[cut - 1][1], chunk[-1][1], 0))
            first += len(chunk)
        at += len(document)
    return samples


@settings(max_examples=50)
@given(documents, st.sampled_from([16, 40, 64, 200]), st.sampled_from([0.0, 0.5]), st.integers(0, 3))
def test_doc_sentences_equal_the_loop(documents, length, short_rate, shard):
    columns = to_columns(documents)
    expected = slow_doc_sentences(columns, length, short_rate, shard)
    assert doc_sentences(columns, length, short_rate, shard).tolist() == expected


@settings(max_examples=80)
@given(
    documents.filter(lambda shard: len(shard) > 1),
    st.sampled_from([16, 40, 64, 200]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 3),
    st.sampled_from([("segment-pair", 1000), ("sentence-pair", 1)]),
)
def test_pairs_equal_the_generator(documents, length, short_rate, shard, kind):
    columns = to_columns(documents)
    name, most = kind
    assert FORMATS[name].cut(columns, length, short_rate, shard).tolist() == slow_pairs(
        columns, length, short_rate, shard, most
    )


@pytest.mark.parametrize("length", [16, 17, 64, 128, 512, 4096])
@pytest.mark.parametrize("name", FORMATS)
def test_no_token_is_lost_and_every_sample_fits_at_every_length(name, length):
    columns = ORIGINALS[0]
    records = FORMATS[name].cut(columns, length, 0.1, 0)
    assert np.all(records["end"] > records["start"])
    own = records["end"]
    if name in PAIRS:
        assert np.all(records["second_end"] > records["second"])
        both = records["end"] - records["start"] + records["second_end"] - records["second"]
        assert both.max() <= length - 3
        own = np.where(records["random"], records["end"], records["second_end"])
    # What follows a sample's own text begins the next, so all of it comes once, and in order.
    assert records["start"].tolist() == [0, *own[:-1].tolist()]
    assert own[-1] == len(columns.tokens)


@pytest.mark.parametrize("name", PAIRS)
def test_the_random_segment_is_of_another_document_and_the_real_one_of_the_same(name):
    columns = random_columns(4, 5000)
    records = FORMATS[name].cut(columns, 128, 0.0, 0)

    def owner(tokens):
        return np.searchsorted(columns.documents, tokens, side="right")

    same = owner(records["start"]) == owner(records["second"])
    assert np.array_equal(same, records["random"] == 0)
    for start, end in [("start", "end"), ("second", "second_end")]:
        assert np.array_equal(owner(records[start]), owner(records[end] - 1))
    assert np.isin(records["second"], columns.sentences).all()


@pytest.mark.parametrize(("name", "length"), [("segment-pair", 128), ("segment-pair", 512), ("sentence-pair", 128)])
def test_labels_are_balanced(name, length):
    records = FORMATS[name].cut(random_columns(4, 20_000), length, 0.1, 0)
    # 5 deviations of a fair coin; chunks of one sentence are paid for by others.
    assert abs(records["random"].mean() - 0.5) < 5 * 0.5 / np.sqrt(len(records))
    assert len(records) > 1500


def test_second_segments_begin_anywhere_with_equal_chance():
    columns = random_columns(4, 20_000)
    records = segment_pair(columns, 128)
    begins = records["second"][records["random"] == 1]
    times = np.histogram(np.searchsorted(columns.sentences, begins), 100, (0, 20_000))[0]
    expected = len(begins) / 100
    assert np.sum((times - expected) ** 2 / expected) < 99 + 5 * 14.1


def test_short_samples_have_the_share_and_the_lengths_that_were_asked():
    """With sentences of one token, samples are as long as they aim to be."""
    columns = to_columns([[[[200 + at % 700]] for at in range(20_000)]])
    sizes = np.concatenate([np.diff(full_sentences(columns, 66, 0.3, shard).view("<u4").reshape(-1, 2)[:-1]).ravel()
                            for shard in range(10)])  # fmt: skip
    short = sizes[sizes < 64]
    # Of the short ones, 1 of 63 aims at the whole length.
    wanted = 0.3 * 62 / 63
    assert abs(len(short) / len(sizes) - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / len(sizes))
    times, expected = np.bincount(short, minlength=64)[2:], len(short) / 62
    assert np.sum((times - expected) ** 2 / expected) < 61 + 5 * np.sqrt(2 * 61)
    assert short.min() == 2


# ------------------------------------------------------------------------------------------------- rows, batches, plans


@settings(max_examples=40)
@given(st.lists(documents.filter(lambda shard: len(shard) > 1), min_size=1, max_size=3), st.integers(16, 150))
def test_rows_of_pairs_equal_the_loop(shards, length):
    """Also where a sentence is alone, as one of three is; and for a row without text."""
    columns = [to_columns(shard) for shard in shards]
    samples = [
        (shard, *record[:4], record[4])
        for shard, part in enumerate(columns)
        for cut in (segment_pair, ORDERED["sentence-pair"].cut)
        for record in cut(part, length, 0.2, shard).tolist()
    ]
    samples.insert(len(samples) // 2, (0, 0, 0, 0, 0, IGNORE))
    shard, start, end, second, second_end, label = np.array(samples, np.int64).T
    rows = gather(columns.__getitem__, Slices(shard, start, end, Seconds(second, second_end, label)), length, SPECIAL)
    for at, sample in enumerate(samples):
        part, bounds = columns[sample[0]], sample[1:5]
        held = bounds[1] - bounds[0] + 2
        alone = bounds[2] == bounds[3]
        left = slow_row(part, bounds[0], bounds[1], length if alone else held)
        right = slow_row(part, bounds[2], bounds[3], length - held + 1)
        for found, first, then in zip((rows.ids, rows.text, rows.words), left, right, strict=True):
            assert found[at].tolist() == (first if alone else first + then[1:])
        assert rows.lengths[at] == (held if alone else held + 1 + bounds[3] - bounds[2])
        assert rows.seconds is not None
        assert rows.seconds[at] == held


@settings(max_examples=80)
@given(
    documents,
    st.sampled_from([16, 40, 64, 200]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 3),
    st.sampled_from([("segment-pair", 1000), ("sentence-pair", 1)]),
)
def test_ordered_pairs_equal_the_generator(documents, length, short_rate, shard, kind):
    columns = to_columns(documents)
    name, most = kind
    assert ORDERED[name].cut(columns, length, short_rate, shard).tolist() == slow_ordered(
        columns, length, short_rate, shard, most
    )


@pytest.mark.parametrize("length", [16, 17, 64, 128, 512, 4096])
@pytest.mark.parametrize("name", PAIRS)
def test_ordered_pairs_lose_no_token_and_stay_in_one_document(name, length):
    columns = ORIGINALS[0]
    records = ORDERED[name].cut(columns, length, 0.1, 0)
    assert records["start"].tolist() == [0, *records["second_end"][:-1].tolist()]
    assert records["second_end"][-1] == len(columns.tokens)
    assert np.array_equal(records["end"], records["second"])
    assert (records["second_end"] - records["start"]).max() <= length - 3
    owner = np.searchsorted(columns.documents, [records["start"], records["second_end"] - 1], side="right")
    assert np.array_equal(owner[0], owner[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    write_folder(path, ORIGINALS)
    return path


@pytest.mark.parametrize("name", PAIRS)
def test_batches_of_pairs(folder, name):
    settings = DataSettings(shards=str(folder), length=64, format=name, short_rate=0.1)
    dataset, _ = open_dataset(settings, "train")
    pipeline = Pipeline(dataset, MaskingSettings(), 64, 3, SPECIAL, RANDOM_IDS)
    samples = np.append(np.arange(len(dataset.plan)), PADDING)
    batch, _ = pipeline.make(samples, np.zeros_like(samples))
    assert batch.next_sentence_labels is not None
    records = dataset.plan.records
    assert batch.next_sentence_labels.tolist() == [*records["random"].tolist(), IGNORE]
    first = (records["end"] - records["start"]).astype(int) + 2
    for row, begin in enumerate(first.tolist()):
        types, length = batch.token_type_ids[row].tolist(), int(batch.lengths[row])
        assert types == [0] * begin + [1] * (length - begin) + [0] * (64 - length)
        seps = [at for at in range(length) if batch.input_ids[row, at] == SPECIAL.sep]
        assert seps == [begin - 1, length - 1]
    assert bool((batch.mlm_labels[-1] == IGNORE).all())


@pytest.mark.parametrize("name", PAIRS)
def test_batches_of_ordered_pairs(folder, name):
    """A label of 1 says that the very pair that a label of 0 shows is the other way round."""
    settings = DataSettings(shards=str(folder), length=64, format=name, pairing="sentence-order", short_rate=0.1)
    dataset, _ = open_dataset(settings, "train")
    pipeline = Pipeline(dataset, MaskingSettings(mask_share=0, random_share=0), 64, 3, SPECIAL, RANDOM_IDS, True)
    samples = np.append(np.arange(len(dataset.plan)), PADDING)
    labels: list[np.ndarray] = []
    pairs: list[list[tuple[list[int], list[int]]]] = []
    for epoch in range(6):
        batch, _ = pipeline.make(samples, np.full_like(samples, epoch))
        assert batch.next_sentence_labels is None and batch.sentence_order_labels is not None
        labels.append(batch.sentence_order_labels.numpy())
        pairs.append([segments(batch, row) for row in range(batch.samples)])
    records = dataset.plan.records
    alone = np.append(records["second"] == records["second_end"], True)
    assert 0 < np.count_nonzero(alone[:-1]) < len(records) / 3
    assert all(np.array_equal(own == IGNORE, alone) for own in labels)
    for row, first in enumerate(pairs[0]):
        for own, found in zip(labels[1:], pairs[1:], strict=True):
            assert found[row] == (first if own[row] == labels[0][row] else first[::-1])
        assert (first[1] == []) == alone[row]
    swapped = np.stack(labels)[:, ~alone]
    assert abs(swapped.mean() - 0.5) < 5 * 0.5 / np.sqrt(swapped.size)
    # And no pair is always the same way round: among fair coins 1 of 32 would be.
    stuck = np.mean(swapped.min(axis=0) == swapped.max(axis=0))
    assert stuck < 1 / 32 + 5 * np.sqrt(1 / 32 / swapped.shape[1])


def segments(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The two segments by the token types, without [CLS] and [SEP]; the second may be empty."""
    ids, types = batch.input_ids[row, : batch.lengths[row]], batch.token_type_ids[row, : batch.lengths[row]]
    assert ids[0] == SPECIAL.cls and not batch.token_type_ids[row, batch.lengths[row] :].any()
    first, second = ids[types == 0].tolist()[1:], ids[types == 1].tolist()
    assert SPECIAL.sep not in first[:-1] + second[:-1]
    assert all(segment[-1] == SPECIAL.sep for segment in (first, second) if segment)
    return first[:-1], second[:-1]


def test_masks_that_repeat_repeat_the_order_of_pairs_too(folder):
    settings = DataSettings(shards=str(folder), length=64, format="segment-pair", pairing="sentence-order")
    dataset, _ = open_dataset(settings, "train")
    pipeline = Pipeline(dataset, MaskingSettings(static_copies=2), 64, 3, SPECIAL, RANDOM_IDS, True)
    samples = np.arange(len(dataset.plan))
    first, second, third = (pipeline.make(samples, np.full_like(samples, epoch))[0] for epoch in range(3))
    for field in fields(Batch):
        one, other = getattr(first, field.name), getattr(third, field.name)
        assert one is other is None or bool((one == other).all())
    assert bool((first.sentence_order_labels != second.sentence_order_labels).any())


@settings(max_examples=10)
@given(st.integers(0, 2**63), st.integers(0, 60), st.sampled_from([(1, 8), (2, 4), (5, 16), (8, 10), (16, 1)]))
def test_what_is_swapped_does_not_depend_on_ranks_or_restarts(folder, seed, step, world):
    """The second step of a run, against the same one of a run that begins there."""
    size, micro_batch = world
    data = DataSettings(shards=str(folder), length=64, format="segment-pair", pairing="sentence-order")

    def batches(rank: int, size: int, micro_batch: int, step: int, steps: int) -> list[Batch]:
        stream = Stream(data, MaskingSettings(), seed, micro_batch, World(rank, size, 0, 1), SPECIAL, RANDOM_IDS)
        with build_loader(stream, global_batch=80, first=80 * step) as loader:
            return [next(loader) for _ in range(steps * 80 // size // micro_batch)]

    rank, share = seed % size, 80 // size
    whole = batches(0, 1, 80, step, steps=2)[1]
    parts = batches(rank, size, micro_batch, step + 1, steps=1)
    for name in ("sentence_order_labels", "input_ids", "token_type_ids", "sample_ids"):
        own = getattr(whole, name)[rank * share : (rank + 1) * share]
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), own)


@pytest.mark.parametrize("name", ["doc-sentences", *PAIRS])
@pytest.mark.parametrize("size", [2, 16, 1024])
def test_every_sample_once_an_epoch_and_the_same_steps_at_any_world_size(folder, name, size):
    settings = DataSettings(shards=str(folder), length=128, format=name)

    def numbers(rank: int, size: int, steps: int) -> list[list[tuple[int, ...]]]:
        world = World(rank, size, 0, 1)
        stream = Stream(settings, MaskingSettings(), 3, 1024 // size, world, SPECIAL, RANDOM_IDS)
        with build_loader(stream, global_batch=1024, first=0) as batches:
            plan = batches.plan_size
            made = [next(batches) for _ in range(steps or max(2, -(-2 * plan // 1024)))]
        return [[*zip(b.sample_ids.tolist(), b.input_ids.sum(dim=1).tolist(), strict=True)] for b in made]

    whole = numbers(0, 1, 0)
    plan = len(open_dataset(settings, "train")[0].plan)
    ids = [sample for step in whole for sample, _ in step]
    for epoch in range(2):
        assert sorted(ids[epoch * plan : (epoch + 1) * plan]) == list(range(plan))
    share = 1024 // size
    for rank in {0, 1, size // 2, size - 1}:
        assert numbers(rank, size, 2) == [step[rank * share : (rank + 1) * share] for step in whole[:2]]


def test_a_damaged_plan_of_pairs_is_built_again_and_each_format_has_its_own(folder):
    settings = [DataSettings(shards=str(folder), length=96, format=name) for name in FORMATS]
    settings += [part.model_copy(update={"short_rate": 0.1}) for part in settings]
    settings += [part.model_copy(update={"pairing": "sentence-order"}) for part in settings if part.pairs]
    manifest = open_dataset(settings[0], "train")[1]
    before = set((folder / "plans").iterdir())

    def records() -> list[list[tuple[int, ...]]]:
        loaded = [load_plan(folder, manifest, "train", part) for part in settings]
        return [plan.read(np.arange(len(plan)))[0].tolist() for plan in loaded]

    plans = records()
    paths = set((folder / "plans").iterdir()) - before
    assert len(paths) == 11
    for path in paths:
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    for _ in paths:
        with pytest.raises(DataError, match="damaged"):
            records()
    assert records() == plans


def test_pairs_need_two_documents_and_mostly_more_than_one_sentence_in_each(tmp_path, caplog):
    alone, short = tmp_path / "alone", tmp_path / "short"
    for path in (alone, short):
        path.mkdir()
    manifest = write_folder(alone, [to_columns([[[[300]], [[301]]]])])
    settings = DataSettings(shards=str(alone), format="segment-pair")
    with pytest.raises(DataError, match=r"shard .*train-00000\.arrow has one document only.*take doc-sentences"):
        load_plan(alone, manifest, "train", settings)
    manifest = write_folder(short, [to_columns([[[[300, 301]]]] * 30)])
    with caplog.at_level(logging.WARNING):
        load_plan(short, manifest, "train", settings)
    assert "100% of the pairs" in caplog.text
    # Sentence order takes its pairs from one document, and asks nothing of a sentence alone.
    ordered = settings.model_copy(update={"pairing": "sentence-order"})
    with caplog.at_level(logging.WARNING):
        load_plan(short, manifest, "train", ordered)
    assert f"100% of the samples of {short} (train) are a sentence alone, of whose order nothing can be asked" in (
        caplog.text
    )
    whole = write_folder(tmp_path / "alone", [to_columns([[[[300]], [[301]]]])])
    assert load_plan(alone, whole, "train", ordered).records.tolist() == [(0, 1, 1, 2, 0)]
