"""Runs that end too early: by an error in the middle of a step, or killed from outside."""

import json
import os
import signal
import subprocess
import sys
import time

from .world import running_of, train


class StopHere(BaseException):
    pass


def stop_at(job, step):
    """Train and leave in the middle of a step."""
    from ehr_train.trainer import Trainer

    original = Trainer.update

    def update(self, what):
        if self.state.step == step:
            raise StopHere
        original(self, what)

    Trainer.update = update
    try:
        train(job, 1)
    finally:
        Trainer.update = original


SCRIPT = """
import json, sys
from ehr_train.job import TrainJob
from ehr_train.launch import train
if __name__ == "__main__":
    train(TrainJob.from_plain(json.load(open(sys.argv[1]))), int(sys.argv[2]))
"""


def train_and_kill(job, folder, world_size=1):
    """SIGKILL from outside, at no particular moment after the first checkpoint."""
    (folder / "job.json").write_text(json.dumps(job.to_plain()))
    (folder / "script.py").write_text(SCRIPT)
    victim = subprocess.Popen([sys.executable, str(folder / "script.py"), str(folder / "job.json"), str(world_size)])
    latest = running_of(job) / "checkpoints" / "latest.pt"
    deadline = time.monotonic() + 120
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert latest.exists()
    assert not os.path.exists(job.output), "it was over before the kill"


def train_and_stop(job, folder, world_size=1, number=signal.SIGTERM, after=None):
    """Send a signal to a training process once a checkpoint is there; its exit status and what it said."""
    (folder / "stopped.json").write_text(json.dumps(job.to_plain()))
    (folder / "stopped.py").write_text(STOPPED)
    command = [sys.executable, str(folder / "stopped.py"), str(folder / "stopped.json"), str(world_size)]
    victim = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(after or running_of(job) / "checkpoints" / "latest.pt", victim)
    victim.send_signal(number)
    said = victim.communicate(timeout=120)[1]
    assert not os.path.exists(job.output), "it was over before the signal"
    return victim.returncode, said


STOPPED = """
import json, sys
from ehr_train.job import TrainJob
from ehr_train.launch import train
from ehr_train.processes.stops import Stopped
if __name__ == "__main__":
    try:
        train(TrainJob.from_plain(json.load(open(sys.argv[1]))), int(sys.argv[2]))
    except Stopped as error:
        print("stopped:", error, file=sys.stderr)
        sys.exit(error.exit_status)
"""


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert path.exists()
