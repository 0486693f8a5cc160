"""Devices and precision: what settings may say, as what torch takes."""

import torch
from ehr_core.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` (this process's GPU) or ``cuda:N``. Raises ConfigError for a GPU that is absent."""
    kind, _, number = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
        raise ConfigError(f"device is {wanted!r}; it must be auto, cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not there):
        return torch.device("cpu")
    if number and local_rank:
        raise ConfigError(f"device={wanted} is one GPU, and there are several processes; use device=cuda")
    index = int(number) if number else local_rank
    if index >= there:
        who = f"device={wanted}" if number else f"process {local_rank} of this machine"
        raise ConfigError(f"{who} needs GPU {index}, and there are {there} GPUs; use device=cpu or fewer processes")
    return torch.device("cuda", index)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context for a forward pass. Raises ConfigError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ConfigError(f"train.precision is {precision!r}; it must be {', '.join(PRECISIONS)}")
    on = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
