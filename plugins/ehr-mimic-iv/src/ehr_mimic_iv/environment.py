"""The environment of the ETL: where it is, what is installed there, and the specification it brings.

The ETL pins other versions of the MEDS tools than the rest of the workbench can live with, so nothing of it is imported
here. Its specification of MIMIC-IV's events is read by its own Python and handed over as JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError

VARIABLE = "EHR_MIMIC_ETL"
TOOL = "meds-extract-run"
REMEDY = (
    "python3 -m venv DIR && DIR/bin/pip install 'mimic-iv-meds>=0.2' 'meds-extract>=0.7.1' 'polars<2' "
    f"(Python 3.11 to 3.13), then source.environment=DIR or {VARIABLE}=DIR"
)
LEAST = {"mimic-iv-meds": (0, 2), "meds-extract": (0, 7, 1)}
"""Without bounds pip goes back, in silence, to releases that work otherwise."""
DESCRIBE = """
import importlib.metadata, importlib.resources, json, yaml
found = importlib.metadata.entry_points(group="MEDS_extract.pipelines")["MIMIC-IV"]
package, _, name = found.value.partition(":")
spec = yaml.safe_load((importlib.resources.files(package) / name).read_text(encoding="utf-8"))
names = ("mimic-iv-meds", "meds-extract", "MEDS-transforms", "polars", "meds")
print(json.dumps({"spec": spec, "versions": {name: importlib.metadata.version(name) for name in names}}))
"""


@dataclass(frozen=True)
class Etl:
    """An environment that has the ETL."""

    bin: Path
    spec: dict[str, Any]
    """The specification of MIMIC-IV's events, in the form of MEDS_extract."""
    versions: dict[str, str]
    """Distribution to version, of what decides the result."""


def find(environment: str | None) -> Etl:
    """The ETL in the environment that is named, in EHR_MIMIC_ETL, or on PATH. Raises ConfigError with the remedy."""
    given = environment or os.environ.get(VARIABLE)
    if given:
        folder = Path(given).absolute() / "bin"
        where = f"source.environment={given}" if environment else f"{VARIABLE}={given}"
        if not (folder / TOOL).is_file():
            raise ConfigError(f"{where} has no bin/{TOOL}; make an environment that has it: {REMEDY}")
        return describe(folder, where)
    on_path = shutil.which(TOOL)
    if on_path is None:
        raise ConfigError(f"source=mimic_iv needs the public MEDS ETL in an environment of its own: {REMEDY}")
    return describe(Path(on_path).resolve().parent, f"{on_path} on PATH")


def describe(folder: Path, where: str) -> Etl:
    """What the environment with this ``bin`` folder holds. Raises ConfigError when that is not the ETL we know."""
    try:
        done = subprocess.run(
            [folder / "python", "-I", "-c", DESCRIBE], capture_output=True, text=True, timeout=300, check=True
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise ConfigError(f"{where} is no environment of the MIMIC-IV ETL ({lines[-1]}); {REMEDY}") from error
    versions = found["versions"]
    old = [f"{name} {versions[name]}" for name, least in LEAST.items() if parts(versions[name]) < least]
    if parts(versions["polars"]) >= (2,):
        old.append(f"polars {versions['polars']}")
    if old:
        raise ConfigError(f"{where} has {', '.join(old)}, which does not do; {REMEDY}")
    return Etl(folder, found["spec"], versions)


def parts(version: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def clean_environment(folder: Path) -> dict[str, str]:
    """Variables for a process of that environment: its ``bin`` first on PATH, nothing of ours on its import path."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "HYDRA_FULL_ERROR")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "PYTHONNOUSERSITE": "1"}
