"""Training on token stores that were made earlier, and training a run further with an adapter, as commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ehr_core.formats.run import Run

SCRIPTS = Path(sys.executable).parent
MODEL = ["model=geneformer", "model.num_layers=1", "model.width=32", "model.num_heads=2", "model.mlp_width=64"]
SMALL = ["objective=masked", "train.max_steps=6", "train.batch_size=4"]


def call(folder, script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A folder with a store of ranked sentences and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("ranked")
    (folder / "parquet").mkdir()
    rng = np.random.default_rng(0)
    sentences = [rng.permutation(np.arange(2, 12))[: rng.integers(4, 10)].tolist() for _ in range(80)]
    pl.DataFrame({"input_ids": pl.Series(sentences, dtype=pl.List(pl.Int64))}).write_parquet(
        folder / "parquet/0.parquet"
    )
    (folder / "vocab.txt").write_text("\n".join(["<pad>", "<mask>", *"ABCDEFGHIJ"]) + "\n")
    done = call(folder, "ehr", "ranked-store", "path=parquet", "vocabulary=vocab.txt", "output=store")
    assert done.returncode == 0, done.stderr
    done = call(folder, "ehr-train", "store=store", *MODEL, *SMALL, "output=first")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_store_is_trained_on_without_records(ranked):
    folder, done = ranked
    assert done.stdout.splitlines()[-1] == "run: first/pretrain"
    assert json.loads((folder / "first" / "stages.json").read_text()).keys() == {"pretrain"}
    run = Run(folder / "first" / "pretrain")
    assert [token.token for token in run.vocabulary.tokens][:3] == ["[PAD]", "[MASK]", "A"]
    assert run.settings["model"]["name"] == "geneformer"
    done = call(folder, "ehr-train", "store=store", *MODEL, *SMALL, "output=first")
    assert "Nothing to do: all 1 stages are up to date." in done.stdout


@pytest.mark.slow
def test_a_run_is_trained_further_with_an_adapter_by_one_command(ranked):
    folder, _ = ranked
    settings = ["store=store", "start_from=first/pretrain", "adapter={name: lora, rank: 2}", *SMALL]
    done = call(folder, "ehr-train", *settings, "output=second")
    assert done.returncode == 0, done.stderr
    low_rank = 4 * 2 * (32 + 32)
    assert f"parameters: {low_rank:,} trained ({low_rank:,} of an adapter)" in done.stderr
    path = folder / "second" / "pretrain"
    adapter = Run(path).settings["adapter"]
    assert (adapter["name"], adapter["rank"]) == ("lora", 2)
    assert Run(path).settings["model"]["width"] == 32
    assert (path / "adapter" / "adapter_config.json").is_file()
    changed = [setting.replace("rank: 2", "rank: 4") for setting in settings]
    assert "would run" in call(folder, "ehr-train", *changed, "output=third", "dry_run=true").stderr
    done = call(folder, "ehr-train", *changed, "output=second")
    assert "output=second holds a run with adapter.rank=2, and this one has 4" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["store=store", "source=meds", "source.path=x"], "store=store has its tokens already"),
        (["store=store", "tokenizer=rank_value"], "leave out tokenizer, or leave out store"),
        (["store=parquet"], "parquet has no manifest.json, so it is no token-store"),
        (["adapter=lora"], "adapter needs a trained model: give start_from=RUN"),
        (["store=store", "start_from=store", "adapter=lora"], "store is a token-store, expected a run"),
        (["store=store", "start_from=first/pretrain", "adapter=lroa"], "no adapter is named 'lroa'"),
        (["source.num_subjects=40", "start_from=absent"], "absent is not a folder; expected a run"),
    ],
)
def test_what_does_not_go_together_is_one_line(ranked, tmp_path, arguments, words):
    folder = shutil.copytree(ranked[0], tmp_path / "copy", symlinks=True)
    done = call(folder, "ehr-train", *arguments, "output=bad")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]
    assert "Traceback" not in done.stderr
