"""A training job: everything that decides a run, as plain JSON when it travels."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from ehr_core.config import component_settings, from_plain, to_plain
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import digest_of, read_json
from ehr_core.formats.run import Run
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ehr_train.settings import DdpConfig, TrainConfig

FREE = ("name", "log_every", "checkpoint_every", "checkpoint_every_seconds", "keep_epochs", "batch_size", "accumulate")
"""Settings of `TrainConfig` that change no weight; of the last two the product with the number of processes counts."""


@dataclass
class TrainJob:
    """Settings of the parts, and the folders to read and to make."""

    store: str
    """Token store with a ``train`` split, and ``tuning`` where losses are to be compared."""
    output: str
    """Run folder to make. While it is being made it is called ``OUTPUT.running``."""
    model: Any
    """Settings of a model. With ``start`` the run's own are used instead."""
    objective: Any
    """Settings of an objective."""
    strategy: Any = field(default_factory=DdpConfig)
    """Settings of a strategy; ``ddp`` serves any number of processes."""
    trackers: dict[str, Any] = field(default_factory=dict)
    """Settings of trackers by any name. They decide nothing."""
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 42
    labels: str | None = None
    """Labels folder with the splits ``train`` and, where losses are to be compared, ``tuning``; for objectives that
    learn from labels."""
    start: str | None = None
    """Run folder to start the model from; its objective is not taken over. The store's vocabulary is the run's, or one
    that has grown from it."""
    adapter: Any = None
    """Train an adapter and the objective's head, and freeze the rest of the model of ``start``: the name of an adapter
    or a preset, a mapping with ``name`` and changed settings, settings, or a folder with an adapter that was trained
    before."""
    stage: str = "pretrain"
    """What trackers call this training."""
    config: dict[str, Any] | None = None
    """The whole composed configuration of the command that trains, for the checkpoints; it decides nothing. None: the
    job is all there is."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = to_plain(self)
        return found

    @classmethod
    def from_plain(cls, found: dict[str, Any]) -> "TrainJob":
        """From JSON values. Raises ConfigError for settings that do not exist."""
        parts = {kind: found[kind] and from_plain(kind, found[kind]) for kind in ("model", "objective", "strategy")}
        trackers = {name: from_plain("tracker", settings) for name, settings in found["trackers"].items()}
        try:
            train = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), found["train"]))
        except OmegaConfBaseException as error:
            raise ConfigError(f"settings of train: {str(error).splitlines()[0]}") from error
        names = {f.name for f in dataclasses.fields(cls)} - {*parts, "trackers", "train"}
        plain = {name: value for name, value in found.items() if name in names}
        return cls(**plain, **parts, trackers=trackers, train=train)  # type: ignore[arg-type]

    def rows(self, world_size: int) -> int:
        """Rows of a global batch: what makes one optimizer step."""
        return self.train.batch_size * self.train.accumulate * world_size

    def resolved(self) -> "TrainJob":
        """The job with the model's settings of the run that it starts from."""
        if self.start is None:
            return self
        settings: dict[str, Any] = dict(Run(self.start).settings)
        return dataclasses.replace(self, model=from_plain("model", settings["model"]))

    def digest(self, inputs: dict[str, str], world_size: int) -> str:
        """sha256 of all that decides the losses: not where the result goes, who watches, or how work is divided.

        How many processes take part, and with which strategy, changes the last digits at most; what counts is how many
        rows make a step.
        """
        plain = self.to_plain()
        deciding = {name: plain[name] for name in ("model", "objective", "seed")}
        deciding["adapter"] = to_plain(adapter_of(self.adapter)[0]) if self.adapter is not None else None
        deciding["train"] = {name: value for name, value in plain["train"].items() if name not in FREE}
        digest: str = digest_of([deciding, inputs, self.rows(world_size)])
        return digest


def adapter_of(value: Any) -> tuple[Any, Path | None]:
    """Settings of an adapter from whatever names it, and its folder where it was trained before. Raises ConfigError."""
    folder = adapter_folder(value)
    if folder is None:
        return component_settings("adapter", value), None
    facts = read_json(folder / "adapter.json", _Adapter)
    return component_settings("adapter", {**facts.settings, "name": facts.name}), folder


class _Adapter(msgspec.Struct):
    """What ``adapter.json`` says of any adapter."""

    name: str
    settings: dict[str, Any]


def adapter_folder(value: Any) -> Path | None:
    """The folder that an ``adapter`` names, where it names one."""
    named = isinstance(value, str | Path) and (Path(value) / "adapter.json").is_file()
    return Path(value) if named else None


def running(output: Path) -> Path:
    """Where a run is while it is being made."""
    return output.with_name(f"{output.name}.running")
