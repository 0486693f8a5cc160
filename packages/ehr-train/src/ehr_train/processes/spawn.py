"""Training in processes of our own: they are started, watched, stopped, and their first error is raised here."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ehr_core.errors import EhrError
from ehr_core.formats.folder import read_json, write_json, write_text

from ehr_train.job import TrainJob, running
from ehr_train.processes.group import RENDEZVOUS, revive
from ehr_train.processes.stops import PARENT, Stopped, Stops, name_of

GRACE = 60.0
"""Seconds that the others have to end after one has."""
Workers = list["subprocess.Popen[bytes]"]


def spawn(job: TrainJob, size: int) -> None:
    """Run the job in processes of its own and wait for them; raise the first error of any.

    A signal that asks this process to end is sent on to them as SIGTERM; they write a checkpoint, and `Stopped` is
    raised.
    """
    with tempfile.TemporaryDirectory(prefix="ehr-train-") as name, Stops() as stops:
        place = Path(name)
        write_json(place / "job.json", job.to_plain())
        threads = str(max((os.cpu_count() or size) // size, 1))
        # The reducer warns each time that unused parameters are allowed and there are none; errors stay.
        defaults = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        fixed = {RENDEZVOUS: str(place / "meeting"), "WORLD_SIZE": str(size), PARENT: str(os.getpid())}
        workers: Workers = []
        try:
            for rank in range(size):
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "ehr_train.processes.worker", str(place)],
                        env={**defaults, **os.environ, **fixed, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,  # a worker ends when this pipe does: no orphans after a kill
                        start_new_session=True,  # a signal to our group is for us; we send it on
                    )
                )
            _wait(workers, stops)
            _raise_first(workers, place, job, stops)
        finally:
            _end(workers)


def _wait(workers: Workers, stops: Stops) -> None:
    """Until all have ended, or one has failed and the others had time to."""
    sent, deadline = False, float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        if stops.number and not sent:
            sent = True
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        if any(worker.poll() for worker in workers):
            # The rank that failed first has written first; the others fail because it is gone.
            deadline = min(deadline, time.monotonic() + (GRACE if stops.number else 0.5))
        time.sleep(0.05)


def _raise_first(workers: Workers, place: Path, job: TrainJob, stops: Stops) -> None:
    if not any(worker.poll() for worker in workers) and all(worker.poll() == 0 for worker in workers):
        return
    reports: list[dict[str, Any]] = [
        read_json(path, dict[str, Any])
        for path in sorted(place.glob("error_*.json"), key=lambda path: path.stat().st_mtime_ns)
    ]
    killed = [(rank, -worker.returncode) for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0]
    stopped = [report for report in reports if report.get("stopped")]
    if stops.number and (stopped or killed):
        early = "stopped before the first step; the same command starts again"
        raise Stopped(stopped[0]["message"] if stopped else early, stops.number)
    if killed:
        rank, number = killed[0]
        raise EhrError(
            f"process {rank} of {len(workers)} was ended by {name_of(number)}; it may have run out of memory: use a "
            "smaller train.batch_size. The same command continues from the last checkpoint"
        )
    if not reports:
        raise EhrError(f"a process of {len(workers)} ended without saying why")
    report = reports[0]
    if report.get("stopped"):
        raise Stopped(report["message"])
    if traceback := report.get("traceback"):
        path = running(Path(job.output)) / "logs" / f"error_rank_{report['rank']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, traceback)
        report["message"] += f"; its traceback is in {path}"
    raise revive(report["kind"], report["message"])


def _end(workers: Workers) -> None:
    """Kill those that are left; a checkpoint is whole or not there."""
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        if worker.stdin:
            worker.stdin.close()
