"""Settings refuse what cannot work, and say what would."""

import pytest

from nezha_ds.config import build, load, to_toml
from nezha_ds.data.formats import FORMATS, PAIR
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "tree", "message"),
    [
        (DataSettings, {"shards": "x", "length": 8}, "length: 8 is not between 16 and 4096 tokens"),
        (DataSettings, {"shards": "x", "length": 5000}, "take 128 or 512"),
        (DataSettings, {"shards": ""}, "the folder has no name"),
        (DataSettings, {"shards": "x", "prefetch": 0}, "prefetch: 0 micro-batches"),
        (DataSettings, {"shards": "x", "short_rate": 1.5}, "short_rate: 1.5 is not a share from 0 to 1; BERT took 0.1"),
        (DataSettings, {"shards": "x", "lenght": 128}, "did you mean 'length'"),
        (MaskingSettings, {"rate": 15.0}, "rate: 15.0 is not a share"),
        (MaskingSettings, {"mask_share": 0.95}, "mask_share 0.95 and random_share 0.1"),
        (MaskingSettings, {"random_share": -0.1}, "random_share -0.1"),
        (MaskingSettings, {"ngram_weights": []}, r"ngram_weights: \[\] are not 1 to 10 weights"),
        (MaskingSettings, {"ngram_weights": [0.0, 0.0]}, "with one above 0; MacBERT takes"),
        (MaskingSettings, {"ngram_weights": [1.0, -1.0]}, "weights from 0 on"),
        (MaskingSettings, {"static_copies": 0}, "static_copies: 0 copies are none"),
        (MaskingSettings, {"max_predictions": 0}, "max_predictions: 0 leaves nothing"),
    ],
)
def test_one_line_with_value_and_way_out(kind, tree, message):
    with pytest.raises(ConfigError, match=message):
        build(kind, tree, "recipe.toml")


def test_formats_know_whether_they_are_pairs():
    for name, kind in FORMATS.items():
        assert DataSettings(shards="x", format=name).pairs == (kind.record == PAIR)


def test_a_mixture_is_written_back_and_overridden(tmp_path):
    tree = {"mixture": {"news": {"shards": "/n", "weight": 3}, "法律": {"shards": "/l"}}, "length": 64}
    settings = build(DataSettings, tree, "a test")
    (tmp_path / "recipe.toml").write_text(to_toml(settings), encoding="utf-8")
    assert load(DataSettings, tmp_path / "recipe.toml") == settings
    other = load(DataSettings, tmp_path / "recipe.toml", ["mixture.法律.weight=2", "verify=sizes"])
    assert other.mixture["法律"].weight == 2
    part = other.parts["news"]
    assert (part.shards, part.mixture, part.length, part.verify) == ("/n", {}, 64, "sizes")


def test_predictions_follow_rate_and_length():
    assert [MaskingSettings().predictions(length) for length in (128, 512)] == [20, 77]
    assert MaskingSettings(rate=0.07).predictions(100) == 7
    assert MaskingSettings(max_predictions=80).predictions(512) == 80
    assert MaskingSettings(rate=0.99).predictions(16) == 14
