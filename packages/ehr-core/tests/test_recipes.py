"""Recipes: what a file says lies under what the command line says."""

import pytest
from ehr_core.errors import ConfigError, FormatError
from ehr_core.recipes import expand, literal
from hydra.core.override_parser.overrides_parser import OverridesParser

GROUPS = {"model": ["gpt", "bert"], "train": ["tiny"], "source": ["meds"], "predictors": ["logistic", "xgboost"]}


def expanded(tmp_path, text, *overrides):
    """What a recipe of this text gives, without the override that keeps its name."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    found = expand([f"recipe={file}", *overrides], GROUPS, [])
    return [override for override in found if not override.startswith("+recipe=")]


def test_choices_and_settings_become_overrides(tmp_path):
    text = """
    title: It's ours
    source: {name: meds, path: "data/[1] a=b"}
    model: gpt
    train: {name: tiny, max_steps: 500}
    predictors: {logistic: {}, xgboost: {max_depth: 3}}
    splits: [tuning, held_out]
    seed: 7
    """
    assert expanded(tmp_path, text) == [
        "title='It\\'s ours'",
        "source=meds",
        "source.path='data/[1] a=b'",
        "model=gpt",
        "train=tiny",
        "train.max_steps=500",
        "predictors=[logistic,xgboost]",
        "predictors.xgboost.max_depth=3",
        "splits=['tuning','held_out']",
        "seed=7",
    ]


def test_a_group_that_the_command_line_chooses_loses_the_settings_of_the_recipe(tmp_path):
    found = expanded(tmp_path, "model: {name: gpt, width: 8}\nseed: 7", "model=bert", "seed=8")
    assert found == ["seed=7", "model=bert", "seed=8"]


@pytest.mark.parametrize(
    "value", ["plain", "it's", "a=b,c[1]{x: y}", "1e-3", "null", "ends with \\", "${oc.env:HOME}", ""]
)
def test_texts_are_read_back_as_they_were(value):
    override = OverridesParser.create().parse_override(f"key={literal(value)}")
    assert override.value() == value


def test_a_recipe_that_is_not_there_or_not_readable_is_one_line(tmp_path):
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "bad.yaml").write_text("a: [")
    folder = tmp_path / "conf" / "recipes"
    folder.mkdir(parents=True)
    (folder / "demo.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"no recipe is named 'demon'\. Installed: demo"):
        expand(["recipe=demon"], GROUPS, [tmp_path / "conf"])
    with pytest.raises(ConfigError, match="is not a file"):
        expand([f"recipe={tmp_path}/absent.yaml"], GROUPS, [])
    for name in ("list", "bad"):
        with pytest.raises(FormatError, match=rf"{name}\.yaml"):
            expand([f"recipe={tmp_path}/{name}.yaml"], GROUPS, [])
