"""The commands ``import-checkpoint`` and ``export-checkpoint``: between checkpoints and run folders."""

import re
from pathlib import Path
from typing import Any

import torch
from ehr_core.config import from_plain, to_plain
from ehr_core.constants import SECOND_US
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats import run as run_format
from ehr_core.formats.folder import (
    Manifest,
    check_free,
    file_digest,
    new_folder,
    read_json,
    replacing,
    typed,
    write_json,
    write_manifest,
    write_text,
)
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TOKENIZER, Prefix, write_prefix
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.plugins import build, registry
from ehr_models.objectives.settings import NextTokenConfig
from ehr_models.settings import GPTConfig
from ehr_tokenize.grammars.ethos import END, INTERVALS, SPACING
from transformers.utils import logging

from ehr_ethos import checkpoints, inert
from ehr_ethos.__about__ import __version__
from ehr_ethos.plugin import ExportConfig, ImportConfig

STATIC = ("GENDER//", "MARITAL//", "RACE//")


def import_checkpoint(settings: ImportConfig) -> None:
    """Make a run folder of a checkpoint of EHR_FM or ETHOS."""
    path, output = Path(settings.checkpoint), Path(settings.output)
    check_free(output)
    vocabulary = Path(settings.vocabulary) if settings.vocabulary else None
    found = checkpoints.read(path, settings.num_heads, vocabulary)
    estimates = Path(settings.interval_estimates) if settings.interval_estimates else None
    middles = write_run(found, path, output, estimates)
    parts = found.settings
    print(
        f"{output}: {parts.num_layers} layers, width {parts.width}, {len(found.tokens):,} tokens, step {found.step:,}"
    )
    if parts.num_experts:
        print("note: the experts have EHR_FM's weights, not its computation: nothing is dropped or drawn by chance")
    if middles:
        print(f"note: {len(middles)} interval tokens stand for the middles of their borders; see interval_estimates")


def write_run(imported: checkpoints.Imported, path: Path, output: Path, estimates: Path | None) -> list[str]:
    """The run folder; gives the interval tokens that ``estimates``, a file, says nothing of.

    Raises FormatError when weights do not fit the shape that the checkpoint says, or estimates the vocabulary.
    """
    model = build("model", imported.settings, vocabulary_size=len(imported.tokens), columns=[])
    try:
        model.load_state_dict(imported.weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise FormatError(f"the weights of {path} do not fit each other: {' '.join(lines[1:2])}") from error
    vocabulary = Vocabulary([token_of(name) for name in imported.tokens])
    seconds, middles = interval_lengths(vocabulary, estimates)
    plain = {"model": to_plain(imported.settings), "objective": to_plain(NextTokenConfig())}
    content = {
        "model": model.state_dict(),
        "objective": {},
        "model_configs": {**plain["model"], "vocabulary_size": len(vocabulary), "columns": []},
        "vocab_stoi": dict(vocabulary.ids),
        "hydra_config_full": plain,
        "step": imported.step,
    }
    bars: Any = logging
    bars.disable_progress_bar()  # it would stand between the lines of ours
    with new_folder(output) as folder:
        model.save_pretrained(folder / "model")
        (folder / "checkpoints").mkdir()
        torch.save(content, folder / "checkpoints" / "best_model.pt")
        write_tokenizer(folder / "tokenizer", vocabulary, seconds)
        (folder / "logs").mkdir()
        write_json(folder / "logs" / "metrics_history.json", [])
        write_json(folder / "hyperparameters.json", plain)
        summary = {
            "steps": imported.step,
            "best_step": imported.step,
            "best_tuning_loss": imported.loss,
            "stopped": "imported",
        }
        write_json(folder / "summary.json", summary)
        write_text(folder / "SUMMARY.txt", f"imported from {path.name}, step {imported.step}\n")
        made_by = [f"ehr-ethos=={__version__}", registry().version("model", "gpt")]
        facts = {"vocabulary": vocabulary.digest, "vocabulary_size": len(vocabulary), "columns": []}
        facts |= {"context_length": imported.settings.context_length, "labelled": False, "interval_middles": middles}
        inputs = {"checkpoint": file_digest(path)}
        if estimates:
            inputs["interval_estimates"] = file_digest(estimates)
        write_manifest(folder, Manifest(run_format.FORMAT, run_format.VERSION, made_by, plain, inputs, facts))
    return middles


def interval_lengths(vocabulary: Vocabulary, estimates: Path | None) -> tuple[dict[str, float], list[str]]:
    """Seconds that each interval token stands for, and the tokens for which that is the middle of their borders.

    ``estimates`` is ``interval_estimates.json``, which both systems write beside their tokens: by statistic and token,
    microseconds in train. Here the means count. Raises FormatError when they are of other tokens or in other units.
    """
    middle = {name: x for name, x in zip(SPACING.names, SPACING.middles(), strict=True) if name in vocabulary.ids}
    found = read_json(estimates, dict[str, Any]).get("mean") if estimates else {}
    means = typed(found, dict[str, float], estimates or Path(), "$.mean")
    for name, micros in means.items():
        if name not in middle:
            raise FormatError(f"{estimates} names {name!r}, which is no interval token of the checkpoint's vocabulary")
        # All borders are within these limits, and numbers in another unit are not.
        if not middle[name] / 2 <= micros / SECOND_US <= middle[name] * 2:
            raise FormatError(
                f"{estimates}: the mean of {name!r} is {micros:g}; expected microseconds, about "
                f"{middle[name] * SECOND_US:.0f}"
            )
    means = {name: micros / SECOND_US for name, micros in means.items()}
    return middle | means, sorted(middle.keys() - means.keys())


def write_tokenizer(folder: Path, vocabulary: Vocabulary, seconds: dict[str, float]) -> None:
    """What is known of the tokenizer: its vocabulary, and what interval tokens stand for. It encodes nothing."""
    folder.mkdir()
    vocabulary.save(folder)
    write_prefix(folder, Prefix())
    days = {name: span for name, span in SPACING.days().items() if name in vocabulary.ids}
    Intervals.join(seconds, days).save(folder)
    write_json(folder / TOKENIZER, {"name": "imported", "settings": {}, "state": {}})


def token_of(name: str) -> Token:
    """A token of a published vocabulary. It keeps its id; there are no special tokens among them."""
    if re.fullmatch(r"Q\d+", name):
        return Token(name, "quantile")
    if name in INTERVALS:
        return Token(name, "interval")
    if name == END:
        return Token(name, "end")
    return Token(name, "static" if name.startswith(STATIC) else "code", (name,))


def export_checkpoint(settings: ExportConfig) -> None:
    """Write a run as ``best_model.pt`` of EHR_FM. Raises ConfigError for a model that EHR_FM does not have."""
    run, output = Run(settings.run), Path(settings.output)
    if output.exists():
        raise FormatError(f"{output} exists already; give another output or remove it first")
    model: Any = run.settings["model"]
    if model["name"] != "gpt":
        raise ConfigError(f"{run.path} is a run of the model {model['name']!r}; only gpt can be exported")
    found: GPTConfig = from_plain("model", model)
    content = inert.load(run.checkpoint)
    exported = {
        "iter_num": int(content["step"]),
        "model": checkpoints.to_theirs(content["model"], found),
        "optimizer": {},
        "scaler": {},
        "best_val_loss": best_loss(run),
        "model_configs": checkpoints.describe(found),
        "vocab_stoi": dict(run.vocabulary.ids),
        "hydra_config_full": content["hydra_config_full"],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        torch.save(exported, temporary)
    print(f"{output}: {len(exported['model'])} tensors, step {exported['iter_num']:,}")


def best_loss(run: Run) -> float | None:
    """The lowest loss on the tuning split, where one was recorded."""
    losses = [entry["tuning_loss"] for entry in run.history if "tuning_loss" in entry]
    return min(losses, default=None)
