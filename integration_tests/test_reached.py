"""Settings that a user gives reach what they are for: each is asserted by a value that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ehr
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from ehr_core.errors import ConfigError, EhrError
from ehr_core.formats.labels import KEY, read_labels
from ehr_core.formats.run import Run
from safetensors.numpy import load_file

SMALL = [
    "model.num_layers=1",
    "model.width=32",
    "model.num_heads=2",
    "model.context_length=64",
    "train.max_steps=3",
    "train.batch_size=4",
    "evaluation.num_bootstrap=20",
]
ALONE = "predictors=[]"
"""The model is trained, and that is all."""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reached")
    ehr.make("source=synthetic", "source.num_subjects=120", f"output={folder / 'records'}")
    return folder / "records"


@pytest.fixture
def train(records, tmp_path):
    """Train in this test's folder, and open the run."""

    def call(*given):
        output = next(part.partition("=")[2] for part in [*given, f"output={tmp_path / 'out'}"] if "output=" in part)
        ehr.run("source=meds", f"source.path={records}", *SMALL, *given, f"output={output}")
        return Run(Path(output) / "pretrain")

    return call


def checkpoint(run):
    return torch.load(run.path / "checkpoints" / "best_model.pt", weights_only=True)


def history(run):
    return [json.loads(line) for line in (run.path / "logs" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["mlm_plos", "classification"])
def test_an_objective_with_labels_learns_those_of_the_task_that_is_named(train, objective):
    tasks = "task=[in_hospital_mortality,readmission_30d]"
    with pytest.raises(ConfigError, match="choose with label_task=NAME"):
        train("model=bert", f"objective={objective}", tasks, ALONE)
    run = train("model=bert", f"objective={objective}", tasks, "label_task=readmission_30d", ALONE)
    assert run.question.kind == "binary"
    assert run.settings["objective"]["name"] == objective
    labels = json.loads((Path(run.path).parent / "labels" / "readmission_30d" / "manifest.json").read_text())
    assert labels["content"]["name"] == "readmission_30d"
    parts = set(history(run)[-1])
    assert ("plos" in " ".join(parts)) == (objective == "mlm_plos")


def test_hyperparameters_and_checkpoints_say_what_a_preset_holds(train):
    run = train("train=2_exp", "train.max_steps=2", "train.batch_size=4", "model=gpt_modern", ALONE)
    told = json.loads((run.path / "hyperparameters.json").read_text())
    preset = ehr.settings("train", "train=2_exp").train
    assert told["train"]["learning_rate"] == preset.learning_rate != ehr.settings("train").train.learning_rate
    assert (told["model"]["norm"], told["model"]["num_layers"]) == ("rms", 1)
    whole = checkpoint(run)["hydra_config_full"]
    assert whole["train"]["learning_rate"] == preset.learning_rate
    assert whole["tokenizer"]["name"] == "ethos"
    assert {"source", "evaluation", "features", "strategy", "tracker", "seed"} <= set(whole)


def test_code_vectors_that_were_learned_first_start_the_token_table(train, tmp_path):
    run = train("embedding=ppmi", "model=bert", "objective=masked", "train.learning_rate=1e-9", ALONE)
    (folder,) = (tmp_path / "out" / "stages").glob("vectors-*")
    vectors = load_file(folder / "vector.safetensors")["vector_VD"]
    table = checkpoint(run)["model"]["embeddings.token.weight"].numpy()
    known = np.flatnonzero(np.abs(vectors).max(1) > 0)
    assert len(known) > 100
    for one in known:  # as they were, up to one scale for all
        cosine = vectors[one] @ table[one] / np.linalg.norm(vectors[one]) / np.linalg.norm(table[one])
        assert cosine == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["train.precision=fp8"], "precision"),
        (["strategy.device=cuda:1"], "cuda"),
        (["train.context_length=4096"], "context_length"),
        (["model.context_length=2"], "context"),
        (["model=bert", "objective=next_token"], "causal"),
        (["train.learning_rate=-1"], "learning_rate"),
    ],
)
def test_a_dry_run_refuses_what_training_would(records, tmp_path, wrong, message):
    given = ["source=meds", f"source.path={records}", *SMALL, *wrong, ALONE, f"output={tmp_path / 'out'}"]
    with pytest.raises(EhrError, match=message):
        ehr.run(*given, "dry_run=true")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("max_steps=0", r"predictors\.finetuned\.max_steps is 0"),
        ("learning_rate=-1", r"predictors\.finetuned\.learning_rate is -1"),
        ("weight_decay=-1", r"predictors\.finetuned\.weight_decay is -1"),
        ("learning_rate=nan", r"predictors\.finetuned\.learning_rate is nan; it must be a finite number"),
        ("objective=regression", "regression"),
        ("objective=masked", "masked"),
        ("adapter={name: lora, rank: 0}", "rank is 0"),
    ],
)
def test_a_dry_run_refuses_what_fine_tuning_would(records, tmp_path, wrong, message):
    given = ["source=meds", f"source.path={records}", *SMALL, "task=readmission_30d", f"output={tmp_path / 'out'}"]
    with pytest.raises(EhrError, match=message):
        ehr.run(*given, "predictors=finetuned", f"predictors.finetuned.{wrong}", "dry_run=true")


def test_a_model_beside_the_run_that_is_started_from_is_refused(train, records, tmp_path):
    run = train(ALONE)
    given = ["source=meds", f"source.path={records}", f"start_from={run.path}", ALONE, f"output={tmp_path / 'next'}"]
    with pytest.raises(ConfigError, match="goes on with that run's model; leave out model"):
        ehr.run(*given, "model.width=16")
    ehr.run(*given, "train.max_steps=2", "train.learning_rate=0")
    again = Run(tmp_path / "next" / "pretrain")
    for name, tensor in checkpoint(run)["model"].items():
        torch.testing.assert_close(checkpoint(again)["model"][name], tensor)


def test_an_output_of_other_settings_is_not_overwritten(train, tmp_path):
    first = train(ALONE)
    digest = first.digest
    with pytest.raises(EhrError, match=r"holds a run with train\.learning_rate=0\.002, and this one has 0\.01"):
        train(ALONE, "train.learning_rate=0.01")
    assert Run(first.path).digest == digest


def test_a_changed_mapping_file_makes_tokens_anew(train, tmp_path):
    mapping = tmp_path / "mapping.csv"
    asked = [
        f"tokenizer.prepare.mappings={{labs: {{path: '{mapping}'}}}}",
        "tokenizer.prepare.rules=[{codes: [LAB//lactate], to: ['LAB//{1|labs} = {value}']}]",
        ALONE,
        f"stages={tmp_path / 'stages'}",
    ]
    mapping.write_text("from,to\nlactate,LACTATE\n")
    one = train(*asked, f"output={tmp_path / 'one'}")
    mapping.write_text("from,to\nlactate,MILK\n")
    two = train(*asked, f"output={tmp_path / 'two'}")
    names = [{token.token for token in run.vocabulary.tokens} for run in (one, two)]
    assert "LAB//LACTATE" in names[0]
    assert "LAB//MILK" in names[1]
    assert len(list((tmp_path / "stages").glob("tokens-*"))) == 2


@pytest.mark.slow
def test_a_recipe_is_read_from_any_folder_and_the_command_line_wins(records, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "mine.yaml").write_text(
        f"source: {{name: meds, path: '{records}'}}\n"
        "model: {name: gpt, num_layers: 1, width: 16, num_heads: 2, context_length: 64}\n"
        "train: {max_steps: 2}\npredictors: []\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = Path(sys.executable).parent / "ehr-train"
    command = [str(script), "-m", "recipe=../mine.yaml", "seed=1,2", "model.width=8", "output=both"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    runs = [Run(tmp_path / "here" / "both" / str(number) / "pretrain") for number in (0, 1)]
    assert [run.settings["model"]["width"] for run in runs] == [8, 8]
    assert [run.settings["seed"] for run in runs] == [1, 2]
    weights = [checkpoint(run)["model"] for run in runs]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(list((tmp_path / "here" / "both" / "stages").glob("tokens-*"))) == 1


def test_a_sweep_goes_on_after_a_run_that_is_refused(records, tmp_path):
    script = Path(sys.executable).parent / "ehr-train"
    given = ["source=meds", f"source.path={records}", *SMALL, ALONE, "model.width=33,32", "dry_run=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([script, "-m", *given], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "ehr-train: run 0: error: model.width is 33; it must be a multiple of model.num_heads" in done.stderr
    assert done.stderr.count("error:") == 1
    assert "2 of 2 stages would run" in done.stderr.partition("run 1: model.width=32")[2]
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_one_file_of_labels_serves_records_that_are_still_to_be_written(records, tmp_path, capfd):
    found = ehr.label("source=meds", f"source.path={records}", "task=readmission_30d", f"output={tmp_path / 'labels'}")
    labels = found["readmission_30d"]
    whole = pa.concat_tables([labels.tables[split].select((*KEY, "boolean_value")) for split in labels.splits])
    pa.csv.write_csv(whole, tmp_path / "back.csv")
    ehr.run("source=synthetic", "source.num_subjects=120", f"labels={tmp_path / 'back.csv'}", *SMALL,
            "predictors=logistic", f"output={tmp_path / 'out'}")  # fmt: skip
    told = capfd.readouterr().err
    positive = sum(labels.array(split).sum() for split in labels.splits) / len(whole)
    assert f"given, binary, {len(whole):,} samples, {positive:.1%} positive" in told
    assert "note: none of the predictors uses the model" in told
    kept = read_labels(tmp_path / "out" / "labels" / "back")
    assert {split: kept.array(split).tolist() for split in kept.splits} == {
        split: labels.array(split).tolist() for split in labels.splits
    }
