"""A training job: everything that decides a run, as plain JSON when it travels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core.config import from_plain, to_plain
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import digest_of
from ehr_core.plugins import KINDS
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ehr_train.settings import DdpConfig, TrainConfig


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
    """Settings of trackers by any name."""
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 42
    labels: str | None = None
    """Labels folder with ``train.parquet`` (and ``tuning.parquet``), for labelled objectives."""
    start: str | None = None
    """Run folder to start the model from; its objective is not taken over."""
    adapter: Any = None
    """Train an adapter and the objective's head, and freeze the rest of the model of ``start``: the name of a preset, a
    mapping with ``name`` and changed settings, or a folder with an adapter that was trained before."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = to_plain(self)
        return found

    @classmethod
    def from_plain(cls, found: dict[str, Any]) -> "TrainJob":
        """From JSON values. Raises ConfigError for settings that do not exist."""
        parts = {kind: _part(kind, found[kind]) for kind in ("model", "objective", "strategy")}
        trackers = {name: _part("tracker", settings) for name, settings in found["trackers"].items()}
        try:
            train = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), found["train"]))
        except OmegaConfBaseException as error:
            raise ConfigError(f"settings of train: {str(error).splitlines()[0]}") from error
        plain = {name: found[name] for name in ("store", "output", "seed", "labels", "start")}
        plain["adapter"] = found.get("adapter")
        return cls(**plain, **parts, trackers=trackers, train=train)  # type: ignore[arg-type]

    def digest(self, inputs: dict[str, str], world_size: int) -> str:
        """sha256 of all that decides the losses: not where the result goes or who watches."""
        found = self.to_plain()
        deciding = {name: found[name] for name in ("model", "objective", "strategy", "train", "seed")}
        free = ("log_every", "checkpoint_every", "checkpoint_every_seconds", "keep_epochs")
        deciding["adapter"] = None if adapter_folder(self.adapter) else found["adapter"]
        deciding["train"] = {name: value for name, value in found["train"].items() if name not in free}
        digest: str = digest_of([deciding, inputs, world_size])
        return digest


def _part(kind: str, found: dict[str, Any] | None) -> Any:
    assert kind in KINDS
    return None if found is None else from_plain(kind, found)


def adapter_folder(asked: Any) -> Path | None:
    """The folder that an ``adapter`` names, where it names one."""
    named = isinstance(asked, str) and (Path(asked) / "adapter.json").is_file()
    return Path(asked) if named else None


def running(output: Path) -> Path:
    """Where a run is while it is being made."""
    return output.with_name(f"{output.name}.running")
