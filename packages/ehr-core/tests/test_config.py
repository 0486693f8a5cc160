"""Settings: what a command line may say, and the one line that a mistake is answered with."""

import dataclasses
import re
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
from ehr_core import Component, config, hookimpl, plugins
from ehr_core.errors import ConfigError
from omegaconf import MISSING


@dataclass
class SmallConfig:
    """Small."""

    name: str = "small"
    width: int = 8


@dataclass
class LargeConfig:
    """Large."""

    name: str = "large"
    depth: int = 3
    path: str = MISSING


@dataclass
class ScreenConfig:
    """A tracker."""

    name: str = "screen"
    every: int = 1


@dataclass
class TrainConfig:
    """Nested settings."""

    steps: int = 10
    weights: dict[str, float] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)


@dataclass
class WorkConfig:
    """A command."""

    defaults: list[Any] = field(default_factory=lambda: [{"model": "small"}, {"tracker": ["screen"]}, "_self_"])
    model: Any = MISSING
    tracker: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: str | None = None
    seed: int = 42


def target(settings):
    return settings


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A registry with two models, a tracker, a command, and a preset in a conf folder beside the plugin module."""
    package = tmp_path / "madeup_plugin"
    (package / "conf" / "model").mkdir(parents=True)
    (package / "conf" / "model" / "wide.yaml").write_text("defaults: [small, _self_]\nwidth: 99\n")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = types.ModuleType("made")
    here = __name__
    sys.modules.setdefault(here, sys.modules[__name__])

    def component(name, settings):
        return Component(name=name, target=f"{here}:target", config=settings, summary=name)

    made.ehr_models = hookimpl(lambda: [component("small", SmallConfig), component("large", LargeConfig)])
    made.ehr_trackers = hookimpl(lambda: [component("screen", ScreenConfig)])
    made.ehr_commands = hookimpl(lambda: [component("work", WorkConfig)])
    found = plugins.discover({"made": made})
    found.plugins[:] = [plugins.Plugin("made", "made", "0", "madeup_plugin")]
    for module in (config, plugins):
        monkeypatch.setattr(module, "registry", lambda: found)
    return found


def test_a_preset_is_had_by_its_name(world):
    assert config.preset("model", "wide", "model.width=98") == SmallConfig(width=98)
    with pytest.raises(ConfigError, match="model=huge"):
        config.preset("model", "huge")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("small", SmallConfig()),
        ("wide", SmallConfig(width=99)),
        ({"name": "small", "width": 5}, SmallConfig(width=5)),
        ({"name": "wide"}, SmallConfig(width=99)),
        (LargeConfig(depth=2), LargeConfig(depth=2)),
    ],
)
def test_a_component_is_named_by_its_name_a_mapping_or_its_settings(world, value, expected):
    assert config.component_settings("model", value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("smal", "model=smal: no model is named 'smal'. Did you mean small? Allowed: large, small, wide."),
        ({"width": 3}, "it names none. Allowed: large, small, wide."),
        (
            {"name": "small", "widht": 3},
            "model small has no setting 'widht'. Did you mean width? Allowed: name, width.",
        ),
        ({"name": "small", "width": "many"}, "settings of model 'small'"),
        (ScreenConfig(), "ScreenConfig are not the settings of a model. Allowed: large, small."),
    ],
)
def test_a_component_that_cannot_be_is_one_line(world, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        config.component_settings("model", value)
    assert "\n" not in str(raised.value)


def test_settings_that_cannot_be_made_harm_only_who_asks_for_them(world):
    broken = dataclasses.make_dataclass("Broken", [("name", str, "broken"), ("what", complex, 1j)])
    world.components["model"]["broken"] = Component(name="broken", target=f"{__name__}:target", config=broken)
    assert settings().model == SmallConfig()
    with pytest.raises(ConfigError, match="complex"):
        settings("model=broken")


def settings(*overrides):
    return config.to_settings(config.compose("work", overrides))


def test_defaults_compose_into_the_dataclasses(world):
    found = settings()
    assert found.model == SmallConfig()
    assert found.tracker == {"screen": ScreenConfig()}
    assert found.seed == 42


def test_overrides_choose_components_and_set_values(world):
    found = settings("model=large", "model.depth=5", "model.path=x", "train.steps=3", "tracker.screen.every=7")
    assert found.model == LargeConfig(depth=5, path="x")
    assert found.train.steps == 3
    assert found.tracker["screen"].every == 7


def test_a_preset_in_a_conf_folder_is_an_option(world):
    assert settings("model=wide").model == SmallConfig(width=99)
    assert config.options()["model"] == ["large", "small", "wide"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modl=small", "there is no setting 'modl': the top level has no 'modl'. Did you mean model?"),
        ("train.stps=3", "there is no setting 'train.stps': train has no 'stps'. Did you mean steps?"),
        ("model.depth=3", "there is no setting 'model.depth': model has no 'depth'"),
        ("model=smal", "model=smal: no model is named 'smal'. Did you mean small? Allowed: large, small, wide."),
        ("tracker=[screen,pager]", "no tracker is named 'pager'"),
        ("train.steps=many", "Value 'many' of type 'str' could not be converted to Integer"),
        ("train.steps=many", "train.steps"),
        ("model=large", "model.path is required: give model.path=..."),
        ("--fast", "'--fast' is not a setting; write key=value"),
        ("seed=7=8=[", "seed"),
        ("seed.x=1", "seed is a single value"),
    ],
)
def test_a_mistake_is_answered_with_one_line(world, override, message):
    with pytest.raises(ConfigError) as caught:
        settings(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("train.weights={LAB//: 2}", "weights", {"LAB//": 2.0}),
        ("train.weights.LAB=2", "weights", {"LAB": 2.0}),
        ("+train.weights.LAB=2", "weights", {"LAB": 2.0}),
        ("train.rules={BMI: [0, 5]}", "rules", {"BMI": [0, 5]}),
        ("train.rules.age.path=x.csv", "rules", {"age": {"path": "x.csv"}}),
    ],
)
def test_keys_of_a_dictionary_are_the_users_own(world, override, name, expected):
    assert getattr(settings(override, "model=large", "model.path=x").train, name) == expected


def test_a_group_of_several_components_is_no_such_dictionary(world):
    with pytest.raises(ConfigError, match=r"tracker has no 'sceen'. Did you mean screen"):
        settings("tracker.sceen.every=2")
    with pytest.raises(ConfigError, match=r"train.weights.LAB: Value 'x' of type 'str' could not be converted"):
        settings("train.weights.LAB=x")


def test_of_several_settings_the_wrong_one_is_named(world):
    with pytest.raises(ConfigError, match=r"there is no setting 'model.deep': model has no 'deep'. Did you mean depth"):
        settings("model=large", "model.path=x", "seed=3", "model.deep=4")


def test_settings_survive_the_way_through_json(world):
    one = LargeConfig(depth=4, path="x")
    assert config.from_plain("model", config.to_plain(one)) == one
    with pytest.raises(ConfigError, match="settings of model 'large'"):
        config.from_plain("model", {"name": "large", "dpth": 3})


def test_help_lists_groups_and_settings(world):
    text = config.describe("work")
    assert "model       large, small, wide" in text
    assert "steps: 10" in text


@dataclass
class Base:
    """Settings that others share."""

    seed: int = 1
    """Where
    it ``begins``."""
    silent: int = 2


@dataclass
class Derived(Base):
    """With one of its own."""

    output: str = "x"
    """The folder."""


def test_help_has_the_words_below_each_setting():
    from ehr_core.config.descriptions import columns, described

    assert described(Derived) == {"seed": "Where it begins.", "output": "The folder."}
    assert columns(described(Derived)) == ["  seed    Where it begins.", "  output  The folder."]
