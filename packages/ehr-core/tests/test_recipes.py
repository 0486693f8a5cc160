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


def test_of_several_chosen_again_those_that_the_recipe_has_keep_its_settings(tmp_path):
    (tmp_path / "mine.yaml").write_text("predictors: {logistic: {max_iter: 5}, xgboost: {max_depth: 3}}")
    given = [f"recipe={tmp_path}/mine.yaml", "predictors=[xgboost,cox]"]
    found = expand(given, GROUPS, [], {"predictors"})
    assert found == ["predictors.xgboost.max_depth=3", f"+recipe='{tmp_path}/mine.yaml'", "predictors=[xgboost,cox]"]


def test_a_recipe_lies_over_the_one_that_it_names(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {name: gpt, width: 8}\nseed: 7\ntrain: tiny")
    found = expanded(tmp_path, f"recipe: {tmp_path}/base.yaml\nmodel: bert\nseed: 8")
    assert found == ["seed=7", "train=tiny", "model=bert", "seed=8"]
    with pytest.raises(ConfigError, match="is laid under itself"):
        expanded(tmp_path, f"recipe: {tmp_path}/mine.yaml")


@pytest.mark.parametrize(
    "value", ["plain", "it's", "a=b,c[1]{x: y}", "1e-3", "null", "ends with \\", "${oc.env:HOME}", ""]
)
def test_texts_are_read_back_as_they_were(value):
    override = OverridesParser.create().parse_override(f"key={literal(value)}")
    assert override.value() == value


def test_a_recipe_that_is_not_there_or_not_readable_is_one_line(tmp_path):
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "bad.yaml").write_text("b: 1\na: [")
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
