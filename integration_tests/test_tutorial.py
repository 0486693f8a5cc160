"""The tutorial, run from top to bottom as a reader would: commands in a shell, blocks of Python in one session."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
pytestmark = pytest.mark.slow


def shell(code):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder, what each block printed by its first line, and the names that the blocks of Python left."""
    folder, printed, names = tmp_path_factory.mktemp("tutorial"), {}, {}
    with contextlib.chdir(folder):
        for language, code in BLOCK.findall(PAGE.read_text()):
            if language == "console":
                said = shell(code)
            else:
                with contextlib.redirect_stdout(io.StringIO()) as caught:
                    exec(compile(code, str(PAGE), "exec"), names)
                said = caught.getvalue()
            printed.setdefault(code.splitlines()[0], []).append(said)
    return folder, printed, names


def one(printed, begin):
    """What the blocks that begin so printed, in order."""
    return [said for first, all_said in printed.items() if first.startswith(begin) for said in all_said]


def test_every_block_is_a_command_or_python():
    assert {language for language, _ in BLOCK.findall(PAGE.read_text())} == {"console", "python"}
    assert "```" not in BLOCK.sub("", PAGE.read_text())


def test_the_labels_are_those_of_the_records(told):
    folder, printed, names = told
    assert one(printed, "import polars") == ["1522 labels, 10.8% positive\n"]
    events = pl.read_parquet(folder / "records/data/*/*.parquet")
    died = dict(events.filter(pl.col("code") == "MEDS_DEATH").select("subject_id", "time").iter_rows())
    for subject, time, label in names["labels"].iter_rows():
        assert label == (subject in died and (died[subject] - time).days < 365)


def test_a_dry_run_foresees_what_the_run_then_says(told):
    _, printed, _ = told
    dry, wet, again = one(printed, "ehr-train recipe=small.yaml labels=death_1y.csv output=mortality")
    steps = [re.search(r"pretrain: .*? ([\d,]+) steps of", said)[1] for said in (dry, wet)]
    assert steps[0] == steps[1]
    assert "Nothing to do" in again


def test_the_model_finds_what_the_generator_put_into_the_records(told):
    _, _, names = told
    assert set(names["auroc"]) == {"finetuned", "xgboost", "logistic"}
    assert names["auroc"]["finetuned"] > 0.7
    assert names["auroc"]["xgboost"] > 0.6


def test_a_sweep_and_an_adapter_use_the_model_that_is_there(told):
    folder, printed, _ = told
    said = [*one(printed, "ehr-train -m"), *next(said for first, said in printed.items() if "lora" in first)]
    assert len(said) == 2
    for text in said:
        assert not re.search(r"^pretrain +running", text, re.M)
    depths = [
        json.loads((folder / f"depths/{number}/fitted/death_1y/xgboost/manifest.json").read_text())["settings"]
        for number in (0, 1)
    ]
    assert [settings["predictor"]["max_depth"] for settings in depths] == [2, 4]
    assert (folder / "lora/fitted/death_1y/finetuned/run/adapter/adapter.json").is_file()


def test_a_notebook_predicts_what_the_command_predicts(told):
    folder, _, names = told
    table = pl.read_parquet(folder / "today/predictions.parquet")
    assert len(table) == 30
    np.testing.assert_allclose(
        names["predictions"].prediction, table["predicted_boolean_probability"].to_numpy(), atol=1e-6
    )
    assert names["states"].shape == (30, 64)


def test_futures_tell_who_dies_without_a_label(told):
    _, printed, names = told
    (said,) = one(printed, "from sklearn")
    assert re.fullmatch(r"AUROC of 143 risks, learned without a label: 0\.\d\d\n", said)
    assert names["roc_auc_score"](names["both"]["boolean_value"], names["both"]["risk"]) > 0.55
