"""Running the ETL: a process with a folder of its own, whose end is our end, and whose error is one line.

Everything is named relative to that folder, because the ETL gives its arguments to a parser that has an opinion about
commas and equal signs in paths. Its stages report to ``out/.logs/pipeline.log``: progress and errors are read there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from ehr_core.errors import EhrError
from ehr_core.progress import Progress

from ehr_mimic_iv.environment import TOOL, Etl, clean_environment
from ehr_mimic_iv.tables import without_values

STAGES = 8
SUPERVISE = """
import os, signal, subprocess, sys, threading
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)  # returns when the process that started this one closes the pipe, or is killed
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
status = process.wait()
os._exit(status if status >= 0 else 128 - status)
"""
"""The ETL is a process that starts a process for each stage: none may outlive us."""
STAGE = re.compile(r"Running stage: (\w+)")
ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*(?:Error|Exception|Panic|Interrupt)): (.+)$", re.M)


def run(etl: Etl, folder: Path, known: Collection[str]) -> Path:
    """Run the ETL on ``folder/spec.yaml`` and ``folder/raw``; returns the folder of the dataset that it made.

    ``known`` are names that an error may quote. Raises EhrError with the stage, its last error and the place of the
    log, which is kept.
    """
    log = folder / "etl.log"
    command = [str(etl.bin / TOOL), "spec=./spec.yaml", "input_dir=./raw", "output_dir=./out", "do_download=false"]
    supervised = [str(etl.bin / "python"), "-I", "-c", SUPERVISE, *command]
    environment = clean_environment(etl.bin)
    with (
        log.open("wb") as file,
        subprocess.Popen(
            supervised,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            _follow(process, folder / "out" / ".logs" / "pipeline.log")
        finally:
            if process.stdin is not None:
                process.stdin.close()
    if process.returncode:
        raise EhrError(_failure(process.returncode, log, known))
    return folder / "out"


def _follow(process: subprocess.Popen[bytes], report: Path) -> None:
    """Show the stages until the process ends."""
    bar = Progress("mimic_iv", None, f"of {STAGES} stages")
    done = 0
    try:
        while process.poll() is None:
            time.sleep(0.2)
            stages = STAGE.findall(report.read_text(errors="replace")) if report.is_file() else []
            bar.update(max(len(stages) - 1, 0) - done, stages[-1] if stages else "")
            done = max(len(stages) - 1, 0)
    finally:
        bar.close()


def _failure(status: int, log: Path, known: Collection[str]) -> str:
    """One line for what is in the log, which is moved to where it stays."""
    report = log.parent / "out" / ".logs" / "pipeline.log"
    texts = [path.read_text(errors="replace") for path in (report, log) if path.is_file()]
    stages = STAGE.findall(texts[0])
    errors = ERROR.findall(texts[0]) or ERROR.findall(texts[-1])
    where = f"in stage {stages[-1]}" if stages else "before its first stage"
    what = f"{errors[-1][0]}: {without_values(errors[-1][1], known)}" if errors else f"it ended with status {status}"
    with tempfile.NamedTemporaryFile("w", prefix="mimic-iv-etl-", suffix=".log", delete=False) as kept:
        for text in reversed(texts):
            kept.write(text)
    shutil.rmtree(log.parent, ignore_errors=True)
    return f"the MIMIC-IV ETL failed {where}: {what}; its log, which may quote records, is {kept.name}"
