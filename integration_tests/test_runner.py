"""The runner as a user meets it: commands in an empty folder, what they print, and what they leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SMALL = [
    "source.num_subjects=160",
    "model.num_layers=1",
    "model.width=32",
    "model.num_heads=2",
    "model.context_length=128",
    "train.max_steps=12",
    "train.batch_size=8",
    "task=in_hospital_mortality",
    "evaluation.num_bootstrap=50",
]
TUNE = ["predictors.finetuned.max_steps=6"]
SCRIPTS = Path(sys.executable).parent


def ehr_train(folder, *arguments, **environment):
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [str(SCRIPTS / "ehr-train"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small run of the demo in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, ehr_train(folder, *SMALL, *TUNE)


def ran(done):
    """Names of the stages that ran."""
    return set(re.findall(r"^(\S+)\s+running", done.stderr, re.MULTILINE))


def test_one_command_goes_from_nothing_to_a_report(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    (report,) = folder.glob("outputs/[0-9]*/*/report.html")
    assert str(report.relative_to(folder)) in done.stdout
    assert "in_hospital_mortality: held_out" in done.stdout
    output = report.parent
    for predictor in ("direct", "finetuned", "xgboost"):
        predictions = pq.read_table(
            output / "predictions" / "in_hospital_mortality" / predictor / "predictions.parquet"
        )
        assert {"subject_id", "prediction_time", "boolean_value", "predicted_boolean_probability"} <= set(
            predictions.column_names
        )
    scores = json.loads((output / "scores.json").read_text())["scores"]
    assert {row["predictor"] for row in scores} == {"direct", "finetuned", "xgboost", "ceiling"}
    assert (output / "pretrain" / "checkpoints" / "best_model.pt").is_file()


def test_a_second_run_does_nothing_and_says_so(demo):
    folder, _ = demo
    done = ehr_train(folder, *SMALL, *TUNE)
    assert "Nothing to do: all" in done.stdout
    assert not ran(done)
    assert len(list(folder.glob("outputs/[0-9]*/*/report.html"))) == 1


@pytest.mark.slow
def test_a_changed_setting_reruns_only_what_depends_on_it(demo):
    folder, _ = demo
    done = ehr_train(folder, *SMALL, *TUNE, "predictors.xgboost.max_depth=2")
    assert done.returncode == 0, done.stderr
    expected = {
        "fit/in_hospital_mortality/xgboost",
        "predict/in_hospital_mortality/xgboost",
        "predictions",
        "scores",
        "report",
    }
    assert ran(done) == expected
    done = ehr_train(folder, *SMALL, *TUNE, "train.learning_rate=0.003", "dry_run=true")
    would = set(re.findall(r"^(\S+)\s+would run", done.stderr, re.MULTILINE))
    assert "pretrain" in would
    assert would.isdisjoint({"data", "labels", "tokens", "predict/in_hospital_mortality/xgboost"})


def test_an_output_folder_of_ones_own_is_used(demo, tmp_path):
    folder, _ = demo
    done = ehr_train(folder, *SMALL, *TUNE, "output=mine", "stages=outputs/stages")
    assert done.returncode == 0, done.stderr
    assert (folder / "mine" / "report.html").is_file()
    assert not ran(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle=gpt"], "there is no setting 'modle': the top level has no 'modle'. Did you mean model?"),
        (["model=gtp"], "no model is named 'gtp'. Did you mean gpt?"),
        (["train.max_steps=many"], "train.max_steps"),
        (["source=meds"], "source.path is required: give source.path=..."),
        (["source=meds", "source.path=absent"], "absent"),
        (["world_size=0"], "world_size is"),
        (["labels=absent", "source.num_subjects=30"], "absent does not exist; expected labels"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(tmp_path, arguments, message):
    done = ehr_train(tmp_path, *arguments)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def broken(kind):
    def truncate(meds):
        shard = meds / "data" / "train" / "1.parquet"
        shard.write_bytes(shard.read_bytes()[:-40])

    def wrong_type(meds):
        shard = meds / "data" / "train" / "1.parquet"
        table = pq.read_table(shard)
        place = table.column_names.index("numeric_value")
        pq.write_table(table.set_column(place, "numeric_value", table["code"]), shard)

    def nobodys(meds):
        shard = meds / "data" / "train" / "1.parquet"
        table = pq.read_table(shard)
        subjects = pa.array([None, *table["subject_id"].to_pylist()[1:]], pa.int64())
        pq.write_table(table.set_column(0, "subject_id", subjects), shard)

    def no_train(meds):
        shutil.rmtree(meds / "data" / "train")

    return {"truncated": truncate, "wrong type": wrong_type, "nobody's row": nobodys, "no train": no_train}[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", ["1.parquet"]),
        ("wrong type", ["1.parquet", "numeric_value"]),
        ("nobody's row", ["1.parquet", "row 1", "subject_id is null"]),
        ("no train", ["train"]),
    ],
)
def test_a_broken_meds_folder_is_one_clear_line(tmp_path, tiny_meds, kind, words):
    meds = shutil.copytree(tiny_meds, tmp_path / "meds")
    broken(kind)(meds)
    done = ehr_train(tmp_path, "source=meds", f"source.path={meds}", "train.max_steps=2")
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in done.stderr


def test_help_answers_and_lists_groups_and_settings(tmp_path):
    done = ehr_train(tmp_path, "--help")
    assert done.returncode == 0
    for word in ("world_size: auto", "model ", "predictors ", "xgboost", "max_steps"):
        assert word in done.stdout


def history(folder):
    (run,) = (path.parent for path in folder.glob("outputs/stages/pretrain-*/manifest.json"))
    return json.loads((run / "logs" / "metrics_history.json").read_text()), run


def losses(rows):
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_two_processes_give_the_same_losses_as_one(demo, tmp_path):
    one, _ = history(demo[0])
    halved = [a if not a.startswith("train.batch_size") else "train.batch_size=4" for a in SMALL]
    done = ehr_train(tmp_path, *halved, "world_size=2", "predictors=[direct]")
    assert done.returncode == 0, done.stderr
    two, _ = history(tmp_path)
    assert losses(one).keys() == losses(two).keys()
    np.testing.assert_allclose(list(losses(one).values()), list(losses(two).values()), rtol=1e-4)


@pytest.mark.slow
def test_the_same_command_runs_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    arguments = [*SMALL, *TUNE, "predictors=[direct,finetuned]"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPTS / "ehr-train"), *arguments], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert len(list(tmp_path.glob("outputs/[0-9]*/*/report.html"))) == 1


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path):
    """kill -9 in the middle of training, the same command again: losses and weights as if nothing had happened."""
    arguments = [*SMALL, "train.max_steps=60", "train.checkpoint_every=5", "model.dropout=0.2", "predictors=[direct]"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert ehr_train(whole, *arguments).returncode == 0
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(SCRIPTS / "ehr-train"), *arguments], cwd=cut, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(cut.glob("outputs/stages/pretrain-*.running/checkpoints/latest.pt")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cut.glob("outputs/[0-9]*/*/report.html"))
    done = ehr_train(cut, *arguments)
    assert done.returncode == 0, done.stderr
    assert "continuing pretrain" in done.stderr
    (rows, run), (rows_again, run_again) = history(whole), history(cut)
    assert losses(rows) == losses(rows_again)
    weights = [(path / "model" / "model.safetensors").read_bytes() for path in (run, run_again)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_real_patients_go_from_folder_to_report(tmp_path):
    """PhysioNet 2012: 4,000 ICU stays with labels; `direct` cannot apply and the runner says why."""
    if "EHR_REAL_DATA" not in os.environ:
        pytest.skip("EHR_REAL_DATA is not set")
    data = Path(os.environ["EHR_REAL_DATA"]).resolve() / "physionet2012_a"
    done = ehr_train(
        tmp_path,
        "source=meds",
        f"source.path={data}",
        f"labels={data / 'labels' / 'in_hospital_mortality'}",
        *[argument for argument in [*SMALL, *TUNE] if not argument.startswith(("source", "task"))],
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"direct: not applicable: .*MEDS_DEATH", done.stdout)
    (output,) = (path.parent for path in tmp_path.glob("outputs/[0-9]*/*/report.html"))
    scores = json.loads((output / "scores.json").read_text())["scores"]
    found = {(row["predictor"], row["metric"]): row["value"] for row in scores}
    assert found["xgboost", "auroc"] > 0.82
