import pytest

from nezha_ds.config import build, load, to_toml
from nezha_ds.errors import ConfigError
from nezha_ds.model.config import PRESETS, ModelSettings, NezhaConfig, preset


def test_a_preset_fills_what_the_section_does_not_set():
    settings = build(ModelSettings, {"preset": "large", "num_hidden_layers": 6}, origin="recipe.toml")
    assert (settings.hidden_size, settings.num_hidden_layers, settings.num_attention_heads) == (1024, 6, 16)
    assert settings.hidden_dropout_prob == 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_with_heads_of_64(name):
    assert preset(name).head_size == 64


def test_no_section_is_base():
    assert ModelSettings().resolve(21128) == preset("base")
    assert (ModelSettings().hidden_size, ModelSettings().num_hidden_layers) == (768, 12)


def test_a_resolved_section_reads_the_same_again(tmp_path):
    settings = build(ModelSettings, {"preset": "small", "intermediate_size": 100}, origin="")
    (tmp_path / "resolved.toml").write_text(to_toml(settings))
    assert load(ModelSettings, tmp_path / "resolved.toml") == settings


def test_resolving_adds_the_vocabulary_and_nothing_else():
    settings = build(ModelSettings, {"preset": "tiny", "hidden_dropout_prob": 0}, origin="")
    config = settings.resolve(500)
    no_heads = {"span_form": None, "sentence_order": False}
    assert config.model_dump() == settings.model_dump() | {"vocab_size": 500, "pad_token_id": 0} | no_heads
    assert settings.resolve(500, 7).pad_token_id == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "bse"}, "preset 'bse' is not known; did you mean 'base'?"),
        ({"num_attention_heads": 7}, "hidden_size = 768 is not a multiple of num_attention_heads = 7; choose"),
        ({"hidden_size": 36}, "/ num_attention_heads = 3 is odd, and relative positions are pairs"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob = 1.0"),
        ({"pad_token_id": 21128}, "pad_token_id = 21128 is outside the vocabulary of 21128 entries"),
        ({"hidden_sizes": 768}, "unknown key 'hidden_sizes'; did you mean 'hidden_size'?"),
        ({"max_relative_position": 0}, "max_relative_position = 0"),
        ({"positions": "relative"}, "positions = 'relative'"),
        ({"norm": "both"}, "norm = 'both'"),
        (
            {"positions": "learned-relative", "attention": "banded"},
            "attention = 'banded' gives no gradient to a table, and positions = 'learned-relative' learn one; choose",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_value_and_the_way_out(values, message):
    with pytest.raises(ConfigError) as caught:
        build(NezhaConfig, {"vocab_size": 21128, **values}, origin="recipe.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.toml: ")
    assert "\n" not in str(caught.value)
