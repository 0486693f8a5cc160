"""The folder that a run leaves for its user, and the table that it ends with."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from ehr_core.formats.folder import read_json, write_json
from ehr_train.runner.stages import Stages

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
    _replace_tree(stages.done["predictions"], output / "predictions")
    for stage, name in (("scores", "scores.json"), ("report", "report.html")):
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
    lines = []
    for task, entry in scores["tasks"].items():
        lines.append(f"{task}: {entry['split']}, {entry['n']:,} samples, {entry['positives']:,} positive")
        metrics = list(dict.fromkeys(m for row in entry["predictors"].values() for m in row))
        lines.append("  " + f"{'':<14}" + "".join(f"{metric:<24}" for metric in metrics))
        for name, row in entry["predictors"].items():
            cells = (_cell(row.get(metric)) for metric in metrics)
            lines.append(f"  {name:<14}" + "".join(f"{cell:<24}" for cell in cells).rstrip())
    return "\n".join(lines)


def _cell(score: dict[str, float] | None) -> str:
    if score is None or score.get("value") is None:
        return "-"
    if score.get("low") is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
