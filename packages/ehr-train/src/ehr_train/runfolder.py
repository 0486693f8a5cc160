"""The documents of a run folder: settings, data, code, and what came out."""

import importlib
import importlib.metadata
import inspect
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ehr_core.config import to_plain
from ehr_core.formats import run as run_format
from ehr_core.formats.folder import Manifest, write_json, write_manifest, write_text
from ehr_core.formats.intervals import FILE as INTERVALS
from ehr_core.formats.tokens import PREFIX, TOKENIZER
from ehr_core.formats.vocabulary import FILE as VOCABULARY
from ehr_core.plugins import registry
from omegaconf import OmegaConf
from safetensors.torch import save_model
from transformers.utils import logging

from ehr_train import checkpoint
from ehr_train.__about__ import __version__
from ehr_train.job import TrainJob, adapter_of
from ehr_train.learner import Learner, load_state
from ehr_train.saving import State
from ehr_train.trainer import Trainer


def begin(folder: Path, job: TrainJob, store: Path) -> None:
    """Write what is known before the first step: settings, environment, source, the tokenizer."""
    plain = job.to_plain()
    whole = plain.pop("config") or plain
    write_json(folder / "hyperparameters.json", plain)
    (folder / ".hydra").mkdir(exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(whole)))
    installed = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name}
    lines = [f"# Python {platform.python_version()}, {platform.platform()}", *sorted(installed, key=str.lower)]
    write_text(folder / "environment.txt", "\n".join(lines) + "\n")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in (VOCABULARY, PREFIX, TOKENIZER, INTERVALS):
        if (store / name).is_file():
            shutil.copyfile(store / name, folder / "tokenizer" / name)
    parts = [registry().get(kind, getattr(job, kind).name) for kind in ("model", "objective")]
    modules = [part.target.partition(":")[0] for part in parts]
    snapshot(folder / "source", ["ehr_train", *modules])


def snapshot(folder: Path, modules: Sequence[str]) -> None:
    """Copy the source of modules; of a package all its Python files."""
    for name in modules:
        found = inspect.getsourcefile(importlib.import_module(name))
        if found is None:
            continue
        source = Path(found)
        package = source.name == "__init__.py"
        base = source.parent if package else source
        for path in sorted(base.rglob("*.py")) if package else [source]:
            target = folder.joinpath(*name.split(".")) if package else folder.joinpath(*name.split(".")[:-1])
            target = target / (path.relative_to(base) if package else path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def finish(
    folder: Path, job: TrainJob, learner: Learner, trainer: Trainer, inputs: dict[str, str], content: dict[str, Any]
) -> None:
    """Write the best model, the figures and the manifest. Doing it twice gives the same.

    ``learner`` is a fresh one on one device; it takes the best weights.
    """
    for leftover in folder.glob("adapter.partial-*"):
        shutil.rmtree(leftover)
    path = folder / "checkpoints" / "best_model.pt"
    best = checkpoint.read(path)
    if learner.adapter is not None and "model" in best:  # merged by an earlier attempt to finish
        best = {name: value for name, value in best.items() if name != "model"}
    learner.restore(best, path, load_state)
    if learner.adapter is not None:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        learner.adapter.save(learner.model, folder / "adapter", learner.objective)
        learner.model = learner.adapter.merge(learner.model)
        checkpoint.write(path, best | {"model": learner.model.state_dict()})
    bars: Any = logging
    bars.disable_progress_bar()  # one bar a file would stand between the lines of ours
    learner.model.save_pretrained(folder / "model")
    bars.enable_progress_bar()
    if learner.objective.state_dict():
        save_model(learner.objective, str(folder / "objective.safetensors"))
    for leftover in [*folder.glob("*/.*.partial-*"), *(folder / "logs").glob("error_rank_*.txt")]:
        leftover.unlink()
    state = trainer.state
    write_json(folder / "logs" / "metrics_history.json", state.history)
    write_json(folder / "metadata.json", metadata(trainer))
    summary = summarize(state, trainer)
    write_json(folder / "summary.json", summary)
    write_text(folder / "SUMMARY.txt", describe(summary, job, trainer))
    plot_losses(folder / "plots" / "loss.png", state)
    plain = job.to_plain()
    settings = {name: plain[name] for name in ("model", "objective", "strategy", "train", "seed")}
    if job.adapter is not None:
        settings["adapter"] = to_plain(adapter_of(job.adapter)[0])
    parts = [registry().version(kind, getattr(job, kind).name) for kind in ("model", "objective", "strategy")]
    made_by = sorted({f"ehr-train=={__version__}", *parts})
    settings["world_size"] = trainer.share.world_size
    write_manifest(folder, Manifest(run_format.FORMAT, run_format.VERSION, made_by, settings, inputs, content))


def metadata(trainer: Trainer) -> dict[str, Any]:
    """Machine, versions, size and speed."""
    state, device = trainer.state, trainer.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "device_type": device.type,
        "world_size": trainer.share.world_size,
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("ehr-core", "ehr-train", "torch", "transformers", "numpy", "safetensors")
        }
        | {"python": sys.version.split()[0]},
        "parameters": trainer.parameters,
        "context_length": trainer.data.context,
        "rows_per_step": trainer.share.rows,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
    }


def summarize(state: State, trainer: Trainer) -> dict[str, Any]:
    """The result in a few numbers."""
    losses = [entry["loss"] for entry in state.history if "loss" in entry]
    return {
        "steps": state.step,
        "planned_steps": trainer.total,
        "epochs": round(state.epoch + state.index / trainer.per_epoch, 3),
        "stopped": state.stopped,
        "best_step": state.best_step,
        "best_tuning_loss": state.best_loss,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "tokens": state.tokens,
        "parameters": trainer.parameters,
    }


def describe_parameters(number: dict[str, int]) -> str:
    """One line about which parameters are trained."""
    parts = f" ({number['adapter']:,} of an adapter)" if number["adapter"] else ""
    share = number["trainable"] / number["total"]
    return f"parameters: {number['trainable']:,} trained{parts}, {share:.2%} of {number['total']:,}"


def describe(summary: dict[str, Any], job: TrainJob, trainer: Trainer) -> str:
    """SUMMARY.txt."""
    best = summary["best_tuning_loss"]
    tuning = "no tuning split" if best is None else f"tuning loss {best:.4f}"
    found = metadata(trainer)
    return (
        f"{job.model.name} trained with {job.objective.name}, seed {job.seed}\n"
        f"best model: step {summary['best_step']}, {tuning}\n"
        f"steps: {summary['steps']} of {summary['planned_steps']} ({summary['epochs']} epochs); {summary['stopped']}\n"
        f"{describe_parameters(trainer.parameters)}\n"
        f"speed: {found['tokens_per_second']:,.0f} tokens/s, {found['seconds']:.0f} s, "
        f"{found['world_size']} process(es) on {found['device_type']}\n"
    )


def plot_losses(path: Path, state: State) -> None:
    """Training and tuning loss over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label, marker in (("loss", "train", ""), ("tuning_loss", "tuning", "o")):
        points = [(entry["step"], entry[name]) for entry in state.history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per predicted item")
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
