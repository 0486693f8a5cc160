"""Checkpoints: plain tensors, numbers and lists, so that ``torch.load(weights_only=True)`` reads them.

A file appears under its name only when all of it is on disk; a kill at any moment leaves the one before.
"""

import random
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from ehr_core.errors import FormatError
from ehr_core.formats.folder import replacing

T = TypeVar("T")


def write(path: Path, content: dict[str, Any]) -> None:
    """Save whole (`ehr_core.formats.folder.replacing`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(content, temporary)


class ModelConfigs(msgspec.Struct):
    """What readers need of a model's settings."""

    columns: list[str]


class Weights(msgspec.Struct):
    """What every checkpoint holds; either a model, or the adapter that was trained of it."""

    objective: dict[str, torch.Tensor]
    model_configs: ModelConfigs
    model: dict[str, torch.Tensor] | None = None
    adapter: dict[str, torch.Tensor] | None = None
    step: int = 0


def read(path: Path) -> dict[str, Any]:
    """Load to the CPU. Raises FormatError that names the file.

    A checkpoint is a zip archive, whose members have checksums. torch does not look at them, so they are verified here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it differs from its checksum")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is not a checkpoint of plain tensors: {reason}") from error


def as_type(content: Any, kind: type[T], path: Path) -> T:
    """The content of a checkpoint as a type. Raises FormatError that names file and field."""
    try:
        return msgspec.convert(content, kind, strict=True)
    except msgspec.ValidationError as error:
        raise FormatError(f"{path} is not a checkpoint as it is written: {error}") from None


def random_state() -> dict[str, Any]:
    """State of every generator of this process, in types that a checkpoint may hold."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    keys = np.asarray(keys)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_all(seed: int, *place: int) -> None:
    """Start every generator; ``place`` tells ranks apart, so that their dropout differs."""
    mixed = int(np.random.SeedSequence([abs(seed), *(place or (0,))]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)
    random.seed(mixed)
