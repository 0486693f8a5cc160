"""The folder that a run leaves for its user, and the table that it ends with."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from ehr_core.formats.folder import read_json, write_json

from ehr_train.runner.stages import Stages, unique

STAGES = "stages.json"
LINKS = ("data", "labels", "tokens", "pretrain")


def earlier_output(stages: Stages) -> Path | None:
    """The newest outputs/DATE/TIME beside the stages that was made of exactly these, or None."""
    found = sorted(stages.folder.parent.glob(f"*/*/{STAGES}"), reverse=True)
    return next((path.parent for path in found if read_json(path) == stages.paths), None)


def default_output() -> Path:
    """outputs/DATE/TIME below the current folder."""
    return Path("outputs") / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S")


def assemble(output: Path, stages: Stages, settings_yaml: str) -> None:
    """Copy what is small to ``output``, link what is large, and name every stage's folder in ``stages.json``."""
    output.mkdir(parents=True, exist_ok=True)
    if "predictions" in stages.done:
        _replace_tree(stages.done["predictions"], output / "predictions")
    for stage, name in (("scores", "scores.json"), ("report", "report.html")):
        if stage in stages.done:
            _replace_file(stages.done[stage] / name, output / name)
    (output / ".hydra").mkdir(exist_ok=True)
    (output / ".hydra" / "config.yaml").write_text(settings_yaml)
    for name in LINKS:
        if name in stages.done:
            _link(output / name, stages.done[name])
    write_json(output / STAGES, stages.paths)


def _replace_file(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _replace_tree(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _link(link: Path, target: Path) -> None:
    if os.name == "nt":  # links need a privilege there; stages.json names the folders
        return
    if link.is_symlink():
        link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent))


def table(scores: dict[str, Any]) -> str:
    """The results as text: one line a task and predictor, with confidence intervals, and the attainable ceiling."""
    rows = scores["scores"]
    lines = []
    for task in unique([row["task"] for row in rows]):
        mine = [row for row in rows if row["task"] == task]
        metrics = unique([row["metric"] for row in mine])
        facts = mine[0]
        lines.append(f"{task}: {facts['split']}, {facts['rows']:,} samples, {facts['positives']:,} positive")
        lines.append((" " * 16 + "".join(f"{metric:<24}" for metric in metrics)).rstrip())
        for name in unique([row["predictor"] for row in mine]):
            cells = {row["metric"]: _cell(row) for row in mine if row["predictor"] == name}
            lines.append((f"  {name:<14}" + "".join(f"{cells.get(metric, '-'):<24}" for metric in metrics)).rstrip())
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
