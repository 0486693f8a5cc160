"""The folder that a run leaves for its user, and the table that it ends with."""

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import MOST_BYTES, read_json, replacing, write_json, write_text
from ehr_core.stages import Given, Graph
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

if TYPE_CHECKING:
    from ehr_train.runner.plan import Plan

STAGES = "stages.json"
CONFIG = ".hydra/config.yaml"
PLACES = ("output", "stages", "dry_run", "world_size", "strategy", "tracker", "executor")
"""Settings that an output may be made again with: where things go and how work is divided."""


def check_output(output: Path, settings_yaml: str) -> None:
    """Raise ConfigError for a folder that was made with other settings: its report would be of two runs."""
    if not (output / CONFIG).is_file():
        if output.is_dir() and any(path.name != "stages" for path in output.iterdir()):
            raise ConfigError(f"output={output} exists and holds no run of ehr-train; give another")
        return
    then, now = _settings_of(output), _flat(OmegaConf.to_container(OmegaConf.create(settings_yaml)))
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key) and key.partition(".")[0] not in PLACES:
            raise ConfigError(
                f"output={output} holds a run with {key}={then.get(key)}, and this one has {now.get(key)}; give "
                "another output (stages that they share are not done again with the same stages=DIR)"
            )


def _settings_of(output: Path) -> dict[str, Any]:
    """The settings that an output was made with. Raises FormatError for a file that is damaged."""
    path = output / CONFIG
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        return _flat(OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8"))))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{path} is damaged: {words}; give another output") from None


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}" if key else str(name)).items()}


def earlier_output(graph: Graph) -> Path | None:
    """The newest outputs/DATE/TIME beside the stages that was made of exactly these, or None."""
    found = sorted(graph.folder.parent.glob(f"*/*/{STAGES}"), reverse=True)
    return next((path.parent for path in found if _names_in(path) == names(graph)), None)


def _names_in(path: Path) -> dict[str, str] | None:
    """What ``stages.json`` of an earlier output says; None where it is damaged, which is no reason to stop another."""
    try:
        return read_json(path, dict[str, str])
    except FormatError:
        return None


def names(graph: Graph) -> dict[str, str]:
    """Stage name to folder name, for ``stages.json``."""
    return {stage.name: stage.path.name for stage in graph.stages}


def default_output() -> Path:
    """outputs/DATE/TIME below the current folder."""
    return Path("outputs") / time.strftime("%Y-%m-%d") / time.strftime("%H-%M-%S")


def assemble(output: Path, plan: "Plan", settings_yaml: str) -> None:
    """Copy what is small to ``output``, link what is large, and name every stage's folder in ``stages.json``."""
    output.mkdir(parents=True, exist_ok=True)
    stages = {stage.name: stage for stage in plan.graph.stages}
    if "predictions" in stages:
        _replace_tree(stages["predictions"].path, output / "predictions")
    for stage, name in (("scores", "scores.json"), ("report", "report.html")):
        if stage in stages and (stages[stage].path / name).is_file():
            with replacing(output / name) as temporary:
                shutil.copyfile(stages[stage].path / name, temporary)
    (output / ".hydra").mkdir(exist_ok=True)
    write_text(output / CONFIG, settings_yaml)
    for name in ("data", "tokens", "vectors", "pretrain"):
        if name in stages:
            _link(output / name, stages[name].path)
    for task, part in plan.labels.items():
        if not isinstance(part, Given) and part.reason is None:
            _link(output / "labels" / task, part.path / task)
    for (task, name), part in plan.fitted.items():
        if part.reason is None:
            _link(output / "fitted" / task / name, part.path)
    write_json(output / STAGES, names(plan.graph))


def _replace_tree(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _link(link: Path, target: Path) -> None:
    if os.name == "nt":  # links need a privilege there; stages.json names the folders
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise ConfigError(f"{link} is a copy where a link to a stage belongs; give another output")
    link.symlink_to(os.path.relpath(target, link.parent))


def table(scores: dict[str, Any]) -> str:
    """The results as text: one line a task and predictor, with confidence intervals, and the attainable ceiling."""
    rows = scores["scores"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        metrics = dict.fromkeys(row["metric"] for row in mine)
        facts = mine[0]
        positives = "" if facts.get("positives") is None else f", {facts['positives']:,} positive"
        lines.append(f"{task}: {facts['split']}, {facts['rows']:,} samples{positives}")
        lines.append((" " * 16 + "".join(f"{metric:<24}" for metric in metrics)).rstrip())
        for name in dict.fromkeys(row["predictor"] for row in mine):
            cells = {row["metric"]: _cell(row) for row in mine if row["predictor"] == name}
            lines.append((f"  {name:<14}" + "".join(f"{cells.get(metric, '-'):<24}" for metric in metrics)).rstrip())
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
