"""Files that were damaged on the way: runs and checkpoints are the same, or refused in a line, and nothing waits."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from ehr_core.errors import EhrError, FormatError
from ehr_core.formats.run import Run
from ehr_core.stages import Graph
from ehr_core.testing.corruption import check_reader
from ehr_train import checkpoint
from ehr_train.job import TrainJob
from ehr_train.learner import load_run
from ehr_train.processes.spawn import spawn
from ehr_train.runner.output import check_output, earlier_output
from ehr_train.settings import TrainConfig
from omegaconf import OmegaConf

from .stopping import StopHere, stop_at
from .world import running_of, train


@pytest.fixture(scope="module")
def begun(tiny, store, tmp_path_factory):
    """A job that was killed after its fourth step."""
    job = TrainJob(
        store=str(store),
        output=str(tmp_path_factory.mktemp("killed") / "run"),
        model=tiny.TinyConfig(),
        objective=tiny.TinyNextConfig(),
        train=TrainConfig(batch_size=8, max_steps=6, checkpoint_every=2, eval_every=3),
    )
    with pytest.raises(StopHere):
        stop_at(job, 5)
    return job


@pytest.fixture
def killed(begun, tmp_path):
    """The same, to be changed."""
    job = dataclasses.replace(begun, output=str(tmp_path / "run"))
    shutil.copytree(running_of(begun), running_of(job))
    return job


def test_a_run(job, tmp_path):
    small = dataclasses.replace(job, train=dataclasses.replace(job.train, max_steps=2, eval_every=2))
    path = train(small, 1)
    for name in ("source", "plots", ".hydra"):
        shutil.rmtree(path / name)  # nobody reads them

    def read(folder):
        run, learner = load_run(folder, torch.device("cpu"))
        assert run.model.is_dir()
        return run.manifest, run.vocabulary.tokens, run.history, run.question, dict(learner.state_dict())

    for pattern in ("manifest.json", "prefix.json", "model.safetensors", "best_model.pt", "metrics_history.json"):
        check_reader(read, path, tmp_path / "s", files=pattern, times=1)


def test_a_checkpoint(tmp_path):
    (tmp_path / "whole").mkdir()
    content = {"a": torch.arange(50.0), "step": 3, "names": ["x"], "more": {"b": torch.ones(3, dtype=torch.int64)}}
    checkpoint.write(tmp_path / "whole" / "latest.pt", content)
    check_reader(lambda path: checkpoint.read(path / "latest.pt"), tmp_path / "whole", tmp_path / "s", times=60)


def change(job, edit):
    """The latest checkpoint of a job with an edit, written anew with checksums that fit."""
    path = running_of(job) / "checkpoints" / "latest.pt"
    content = checkpoint.read(path)
    edit(content)
    checkpoint.write(path, content)


def first_state(content):
    return next(iter(content["optimizer"]["state"].values()))


EDITS = {
    "another shape of the optimizer": (lambda c: first_state(c).update(exp_avg=torch.zeros(3, 5)), "exp_avg of"),
    "one number in the place of many": (lambda c: first_state(c).update(exp_avg="many"), "exp_avg of"),
    "no moments of one": (lambda c: first_state(c).pop("exp_avg"), "of other parameters"),
    "no moments at all": (
        lambda c: [s.pop("exp_avg") for s in c["optimizer"]["state"].values()],
        "exp_avg of .* missing",
    ),
    "no rate": (lambda c: c["optimizer"]["groups"][0].pop("lr"), "missing required field `lr`"),
    "a rate of text": (lambda c: c["optimizer"]["groups"][0].update(lr="fast"), "got `str` - at `\\$.lr`"),
    "an optimizer of other parameters": (lambda c: c["optimizer"]["state"].update(other={}), "of other parameters"),
    "an optimizer that is a list": (lambda c: c.update(optimizer=[]), r"\$.optimizer"),
    "a rate that is no number": (lambda c: c["optimizer"]["groups"][0].update(lr=float("nan")), "lr in the optimizer"),
    "weights of another shape": (lambda c: c["model"].update({min(c["model"]): torch.zeros(3, 5)}), "size mismatch"),
    "weights that are whole numbers": (
        lambda c: c["model"].update({min(c["model"]): c["model"][min(c["model"])].long()}),
        "torch.int64",
    ),
    "weights that are text": (lambda c: c["model"].update({min(c["model"]): "x"}), "xpected `Tensor`"),
    "no weights": (lambda c: c.pop("model"), "no weights of the model"),
    "a step before the first": (lambda c: c["state"].update(step=-1), r"\$.state.step"),
    "a step that is text": (lambda c: c["state"].update(step="4"), r"\$.state.step"),
    "a history of texts": (lambda c: c["state"].update(history=[{"loss": "low"}]), r"\$.state.history"),
    "no process": (lambda c: c.update(ranks=[]), r"\$.ranks"),
    "sums of three": (lambda c: c["ranks"][0].update(sums={"loss": torch.zeros(3)}), "pairs of a sum and a count"),
    "a generator of another kind": (lambda c: c["ranks"][0]["random"].update(torch=torch.zeros(3)), "gone on from"),
    "a generator that is missing": (lambda c: c["ranks"][0]["random"].pop("python"), "gone on from"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_checkpoint_that_cannot_be_is_refused_field_by_field(killed, name):
    edit, words = EDITS[name]
    change(killed, edit)
    with pytest.raises(FormatError, match=words) as error:
        train(killed, 1)
    assert "latest.pt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_refused_and_the_run_goes_on_once_it_is_removed(killed):
    path = running_of(killed) / "checkpoints" / "latest.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"latest\.pt is not a checkpoint of plain tensors: .*checksum"):
        train(killed, 1)
    path.unlink()
    assert Run(train(killed, 1)).history


def test_the_settings_of_an_earlier_output(tmp_path):
    text = OmegaConf.to_yaml({"seed": 42, "model": {"name": "gpt", "width": 32}, "trackers": [1, 2.5, None]})
    (tmp_path / "whole" / ".hydra").mkdir(parents=True)
    (tmp_path / "whole" / ".hydra" / "config.yaml").write_text(text)
    check_reader(lambda path: check_output(path, text), tmp_path / "whole", tmp_path / "s", times=30)


def test_a_damaged_list_of_stages_is_no_output_to_make_again(tmp_path):
    (tmp_path / "day" / "hour").mkdir(parents=True)
    graph = Graph(tmp_path / "stages")
    for content, found in (("{}", tmp_path / "day" / "hour"), ("{", None), ("[]", None), ('{"a": 1}', None)):
        (tmp_path / "day" / "hour" / "stages.json").write_text(content)
        assert earlier_output(graph) == found


@pytest.mark.slow
def test_two_processes_refuse_an_optimizer_of_another_shape_and_do_not_wait_for_each_other(killed):
    """It hung: the process that found out was gone, and the other waited for it."""
    two = dataclasses.replace(killed, train=dataclasses.replace(killed.train, batch_size=4))
    change(two, EDITS["another shape of the optimizer"][0])
    with pytest.raises(EhrError, match="exp_avg of"):
        spawn(two, 2)
    assert not Path(two.output).exists()
