"""Runs that are killed go on where they were and end in the same bytes; two processes do not make one store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ehr_core.cli import run
from ehr_core.errors import DataError, EhrError, FormatError
from ehr_core.formats.folder import file_digests
from ehr_tokenize.store import command, jobs
from ehr_tokenize.store.work import Work, working
from filelock import FileLock

SHARDS = 6
SLOW = """
import sys, time
from ehr_tokenize.store import command, jobs

def summarize(job):
    time.sleep(0.15)
    return jobs.summarize(job)

def encode(job):
    time.sleep(0.15)
    return jobs.encode(job)

def main():
    command.summarize, command.encode = summarize, encode
    from ehr_core.cli import guarded, run
    sys.exit(guarded("ehr-tokenize", lambda rest: run("ehr-tokenize", "tokenize", rest), sys.argv[1:]))
"""
"""The command, with shards that take long enough to be interrupted."""


@pytest.fixture
def meds(world, tmp_path):
    """Six train shards of four subjects, with numbers."""
    shards = []
    for shard in range(SHARDS):
        rows = []
        for subject in range(10 * shard + 1, 10 * shard + 5):
            rows += [(subject, None, f"GENDER//{'MF'[subject % 2]}"), (subject, "1960-05-05", "MEDS_BIRTH")]
            rows += [(subject, f"2020-01-{day:02}", "LAB//K", subject * day % 17 / 3) for day in range(1, 20)]
        shards.append(rows)
    return world.write_meds(tmp_path / "meds", train=shards)


def overrides(meds: Path, output: Path, *more: str) -> list[str]:
    return ["source=meds", f"source.path={meds}", f"output={output}", "tokenizer.min_count=1", *more]


def tokenize(meds: Path, output: Path, *more: str) -> dict[str, str]:
    """Digests of everything in the store."""
    run("ehr-tokenize", "tokenize", overrides(meds, output, *more))
    return file_digests(output) | {"manifest": (output / "manifest.json").read_text()}


def start(meds: Path, output: Path, *more: str) -> subprocess.Popen:
    (meds.parent / "modules").mkdir()
    (meds.parent / "modules" / "slow.py").write_text(SLOW)
    arguments = [sys.executable, "-c", "import slow; slow.main()", *overrides(meds, output, *more)]
    path = os.pathsep.join([str(meds.parent / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(arguments, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def kill_when(process: subprocess.Popen, ready) -> None:
    """SIGKILL the process and what it started, as soon as something is there."""
    for _ in range(600):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


@pytest.mark.parametrize(("folder", "least"), [("fit", 1), ("records", 1), ("records", 4)])
def test_a_killed_run_continues_and_ends_in_the_same_bytes(meds, tmp_path, monkeypatch, folder, least):
    expected = tokenize(meds, tmp_path / "whole")
    output = tmp_path / "store"
    work = Work(tmp_path / "store.running")
    process = start(meds, output)
    kill_when(process, lambda: len(list((work.folder / folder).glob("[!.]*"))) >= least)
    assert not output.exists()
    kept = {path: path.stat().st_mtime_ns for path in work.folder.glob(f"{folder}/[!.]*")}
    done = []
    monkeypatch.setattr(command, "summarize", lambda job: (done.append(("fit", job.file)), jobs.summarize(job))[1])
    monkeypatch.setattr(command, "encode", lambda job: (done.append(("records", job.record)), jobs.encode(job))[1])
    assert tokenize(meds, output) == expected
    again = {path for kind, path in done if kind == folder}
    assert len(kept) >= least
    assert not again & set(kept)  # what was there was not made again
    assert len(again) + len(kept) == (SHARDS if folder == "fit" else SHARDS + 2)
    assert (folder == "fit") == any(kind == "fit" for kind, _ in done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds", "modules", "store", "whole"]


def test_a_killed_pool_of_processes_continues_too(meds, tmp_path):
    expected = tokenize(meds, tmp_path / "whole")
    pool = ["executor=processes", "executor.num_workers=2"]
    work = Work(tmp_path / "store.running")
    process = start(meds, tmp_path / "store", *pool)
    kill_when(process, lambda: work.record("train", 1).is_file())
    assert tokenize(meds, tmp_path / "store", *pool) == expected


def test_workers_end_with_the_process_that_started_them(meds, tmp_path):
    process = start(meds, tmp_path / "store", "executor=processes", "executor.num_workers=2")
    work = Work(tmp_path / "store.running")
    for _ in range(600):
        if list(work.folder.glob("fit/[!.]*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()
    process.kill()  # alone: its workers hear nothing of it
    process.wait()
    process.stderr.close()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)  # is anyone left in its group?
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers were left behind")


def test_records_that_the_source_wrote_are_used_again(tmp_path, monkeypatch):
    arguments = ["source=synthetic", "source.num_subjects=60", "source.shard_subjects=20", f"output={tmp_path}/store"]

    def stop(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        run("ehr-tokenize", "tokenize", arguments)
    monkeypatch.setattr(command, "encode", jobs.encode)
    written = tmp_path / "store.running" / "source" / "data" / "train" / "0.parquet"
    before = written.stat().st_mtime_ns
    seen = []
    monkeypatch.setattr(
        command, "encode", lambda job: (seen.append(job.shard.path.stat().st_mtime_ns), jobs.encode(job))[1]
    )
    run("ehr-tokenize", "tokenize", arguments)
    assert before in seen
    run("ehr-tokenize", "tokenize", [*arguments[:-1], f"output={tmp_path}/whole"])
    assert file_digests(tmp_path / "store") == file_digests(tmp_path / "whole")


def test_a_run_of_other_settings_or_records_is_not_continued(world, meds, tmp_path, monkeypatch):
    def stop(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        tokenize(meds, tmp_path / "store")
    left = file_digests(tmp_path / "store.running")
    with pytest.raises(FormatError, match=r"store.running holds an unfinished store of other settings"):
        tokenize(meds, tmp_path / "store", "tokenizer.num_quantiles=3")
    world.write_meds(meds, tuning=[[(5000, "2020-01-01", "NEW")]])
    with pytest.raises(FormatError, match="remove that folder"):
        tokenize(meds, tmp_path / "store")
    assert file_digests(tmp_path / "store.running") == left


def test_a_second_process_is_told_to_wait(meds, tmp_path):
    lock = FileLock(tmp_path / "store.lock")
    with lock, pytest.raises(EhrError, match=r"another process is making .*store"):
        tokenize(meds, tmp_path / "store")
    assert not (tmp_path / "store.running").exists()


def test_an_error_in_the_records_leaves_nothing_behind(meds, tmp_path):
    with pytest.raises(DataError), working(tmp_path / "store"):
        raise DataError("a bad row")
    assert [path.name for path in tmp_path.iterdir()] == ["meds"]


def test_a_worker_that_died_leaves_the_work_that_is_done(tmp_path):
    with pytest.raises(EhrError), working(tmp_path / "store"):
        raise EhrError("a worker process died")
    assert [path.name for path in tmp_path.iterdir()] == ["store.running"]


def test_what_a_kill_at_the_very_end_leaves_is_tidied_up(meds, tmp_path):
    tokenize(meds, tmp_path / "store")
    left = tmp_path / "store.running"
    left.mkdir()
    (left / "state.json").write_text(json.dumps({"digest": "", "now": 0}))
    with pytest.raises(FormatError, match="exists already"):
        tokenize(meds, tmp_path / "store")
    assert not left.exists()
