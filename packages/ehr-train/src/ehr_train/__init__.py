"""Training of EHR models: packed data, an exact loop that survives any kill, and prediction with what was trained.

`train`, `TrainJob`, `load` and so on are imported on first use, because torch takes a second.
"""

import importlib
from typing import Any

HOMES = {
    "TrainJob": "ehr_train.job",
    "train": "ehr_train.launch",
    "check_job": "ehr_train.check",
    "estimate": "ehr_train.estimate",
    "load": "ehr_train.api",
    "represent": "ehr_train.api",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'ehr_train' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
