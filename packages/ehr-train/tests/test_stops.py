"""A signal ends training with a checkpoint and one line, and the same command goes on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ehr_core.formats.folder import read_json
from ehr_train.processes.stops import Stops

from .stopping import train_and_stop, wait_for
from .world import running_of, same_weights, train, weights


@pytest.fixture
def long(job):
    """No checkpoint is due before the run is over."""
    settings = dataclasses.replace(job.train, batch_size=4, max_steps=150, max_epochs=None, eval_every=150)
    return dataclasses.replace(job, train=settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "number", "status"),
    [(1, signal.SIGTERM, 143), (1, signal.SIGINT, 130), (1, signal.SIGHUP, 129), (2, signal.SIGINT, 130)],
)
def test_a_signal_keeps_what_was_done_and_the_run_goes_on_bit_for_bit(long, tmp_path, world_size, number, status):
    started = running_of(long) / "logs" / "metrics.jsonl"
    code, said = train_and_stop(long, tmp_path, world_size, number, after=started)
    assert code == status
    (line,) = [line for line in said.splitlines() if line.startswith("stopped:")]
    assert "the same command goes on from there" in line
    step = weights(running_of(long), "latest")["step"]
    assert f"stopped after step {step} of 150" in line
    assert 0 < step < 150
    path = train(long, world_size)
    whole = train(dataclasses.replace(long, output=str(tmp_path / "whole")), world_size)
    assert read_json(path / "logs/metrics_history.json") == read_json(whole / "logs/metrics_history.json")
    assert same_weights(weights(path, "latest"), weights(whole, "latest"))
    assert same_weights(weights(path), weights(whole))


TRACKED = """
import json, sys
from ehr_train.processes.stops import Stopped, Stops
from ehr_train.trackers import Jsonl
from ehr_train.trainer import Trainer
import os, signal
finish, update = Jsonl.finish, Trainer.update

def said(self, status):
    if self._file is not None:
        print("tracker:", status)
    finish(self, status)

def signalled(self, step):
    update(self, step)
    if self.state.step == 5:
        os.kill(os.getpid(), signal.SIGTERM)

Jsonl.finish, Trainer.update = said, signalled
from ehr_train.job import TrainJob
from ehr_train.launch import train
try:
    train(TrainJob.from_plain(json.load(open(sys.argv[1]))), 1)
except Stopped as error:
    print(error)
"""


def test_the_step_is_finished_and_trackers_hear_that_the_run_was_stopped(job, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(job.to_plain()))
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, str(tmp_path / "job.json")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "tracker: stopped"
    assert "stopped after step 5 of 12" in done.stdout
    assert weights(running_of(job), "latest")["step"] == 5


TORCHRUN = """
import json, sys
from ehr_train.job import TrainJob
from ehr_train.launch import serving, train
from ehr_train.processes.stops import Stopped
with serving() as leader:
    if leader:
        try:
            train(TrainJob.from_plain(json.load(open(sys.argv[1]))))
        except Stopped as error:
            print("stopped:", error)
"""


@pytest.mark.slow
def test_under_torchrun_a_signal_to_one_rank_stops_all_of_them_in_good_order(long, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(long.to_plain()))
    (tmp_path / "script.py").write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    whole = [*command, str(tmp_path / "script.py"), str(tmp_path / "job.json")]
    victim = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True)
    wait_for(running_of(long) / "logs" / "metrics.jsonl", victim)
    children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children")
    if not children.exists():
        pytest.skip("processes cannot be looked at here")
    ranks = [int(pid) for pid in children.read_text().split()]
    scripts = [pid for pid in ranks if b"script.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(scripts[-1], signal.SIGTERM)
    said = victim.communicate(timeout=120)[0]
    assert "stopped: stopped after step" in said
    assert victim.returncode == 0
    assert weights(running_of(long), "latest")["step"] < 150


def test_a_worker_ends_when_its_parent_is_gone_though_its_pipe_stays_open(tmp_path):
    reader, writer = os.pipe()  # a pipe that somebody else holds open
    child = (
        "import os, sys, time\n"
        "from ehr_train.processes.stops import end_with_parent\n"
        "end_with_parent(); print(os.getpid(), flush=True); time.sleep(60)\n"
    )
    parent = f"import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin={reader});"
    parent += "import time; time.sleep(2.5); os._exit(0)"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, pass_fds=[reader], text=True)
    pid = int(started.stdout.readline())
    started.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.1)
    assert not _alive(pid)
    os.close(writer), os.close(reader)


def _alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture
def heard():
    """Ctrl-C reaches the test also where it was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_acts_as_ever(heard):
    with Stops() as stops:
        signal.raise_signal(signal.SIGINT)
        assert stops.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
