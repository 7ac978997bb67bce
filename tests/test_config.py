import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from nezha_ds.config import Settings, build, load, nearest, set_dotted, to_toml
from nezha_ds.errors import ConfigError, NezhaError


class Inner(Settings):
    rate: float = 0.15
    steps: int = Field(default=10, ge=1)
    names: tuple[str, ...] = ("a",)


class Outer(Settings):
    inner: Inner = Inner()
    folder: Path = Path("runs")
    kind: Literal["word", "span"] = "word"
    limit: int | None = None
    on: bool = True

    @model_validator(mode="after")
    def _agree(self):
        if self.kind == "span" and self.inner.rate > 0.5:
            raise ValueError("a span rate above 0.5 masks everything; lower inner.rate")
        return self


def test_defaults_then_recipe_then_overrides(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('folder = "from/recipe"\n[inner]\nrate = 0.2\nsteps = 5\n')
    settings = load(Outer, recipe, ["inner.steps=7", "limit=3"])
    assert settings == Outer(inner=Inner(rate=0.2, steps=7), folder=Path("from/recipe"), limit=3)
    assert load(Outer) == Outer()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("inner.rate=0.3", "inner.rate", 0.3),
        ("inner.rate = 1", "inner.rate", 1.0),
        ('inner.names=["b", "c"]', "inner.names", ("b", "c")),
        ("on=false", "on", False),
        ("folder=some/where", "folder", Path("some/where")),
        ('folder="1"', "folder", Path("1")),
        ("folder=a=b", "folder", Path("a=b")),
        ("inner={rate=0.4}", "inner.rate", 0.4),
        ("kind=span", "kind", "span"),
    ],
)
def test_overrides_are_toml_and_otherwise_text(override, path, value):
    settings: Any = load(Outer, overrides=[override])
    for name in path.split("."):
        settings = getattr(settings, name)
    assert settings == value and type(settings) is type(value)


def test_the_last_override_wins():
    assert load(Outer, overrides=["limit=1", "limit=2"]).limit == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.step=3", "unknown key 'inner.step'; did you mean 'steps'?"),
        ("iner.steps=3", "unknown key 'iner'; did you mean 'inner'?"),
        ("xyz=3", "unknown key 'xyz'; known are folder, inner, kind, limit, on"),
        ("inner.steps=0", "inner.steps = 0: input should be greater than or equal to 1"),
        ('inner.steps="3"', "inner.steps = '3': input should be a valid integer"),
        ("inner.steps=3.0", "inner.steps = 3.0: input should be a valid integer"),
        ("inner.steps=true", "inner.steps = True: input should be a valid integer"),
        ("on=1", "on = 1: input should be a valid boolean"),
        ("kind=words", "kind = 'words': input should be 'word' or 'span'"),
        ("inner=3", "inner = 3: input should be an object"),
        ("inner.names=b", "inner.names = 'b': input should be a valid array"),
        ("limit=2026-01-01", "write it as a string"),
        ("inner.steps", "override 'inner.steps' is not of the form section.key=value"),
        ("=3", "is not of the form"),
        ("inner..steps=3", "is not of the form"),
    ],
)
def test_what_is_wrong_is_named(override, message):
    with pytest.raises(ConfigError) as raised:
        load(Outer, overrides=[override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_value_is_not_a_section():
    with pytest.raises(ConfigError, match="'limit' is a value, not a section"):
        load(Outer, overrides=["limit=3", "limit.low=2"])


def test_a_rule_between_settings_speaks_in_its_own_words():
    with pytest.raises(ConfigError) as raised:
        load(Outer, overrides=["kind=span", "inner.rate=0.6"])
    assert str(raised.value) == "the command line: a span rate above 0.5 masks everything; lower inner.rate"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rate = ", "is not valid TOML"),
        ("名 = 1".encode("gb18030"), "is not UTF-8"),
        (b"limit = 1\nlimit = 2\n", "is not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, content, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{recipe} {message}"):
        load(Outer, recipe)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(Outer, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(Outer, tmp_path)


def test_the_origin_of_an_error_is_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("limits = 3\n")
    with pytest.raises(ConfigError, match=f"{recipe}: unknown key 'limits'; did you mean 'limit'"):
        load(Outer, recipe)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Outer().on = False


settings_strategy = st.builds(
    Outer,
    inner=st.builds(
        Inner,
        rate=st.floats(0, 0.5),
        steps=st.integers(1, 2**53),
        names=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
    ),
    folder=st.sampled_from([Path("/a b/c"), Path("中文"), Path('q"')]),
    kind=st.sampled_from(["word", "span"]),
    limit=st.none() | st.integers(-(2**53), 2**53),
    on=st.booleans(),
)


@given(settings_strategy)
def test_a_run_folder_holds_its_own_recipe(settings):
    """What is written back reads as the same settings."""
    assert build(Outer, tomllib.loads(to_toml(settings)), origin="here") == settings


@given(st.text(), st.text())
def test_any_override_is_taken_or_refused_in_one_line(key, value):
    tree: dict[str, Any] = {}
    try:
        set_dotted(tree, f"{key}={value}")
        build(Outer, tree, origin="here")
    except NezhaError as error:
        assert str(error)


def test_nearest_offers_one_name_or_all():
    assert nearest("sgd", ["adam", "lamb"]) == "; known are adam, lamb"
    assert nearest("lam", ["adam", "lamb"]) == "; did you mean 'lamb'?"
