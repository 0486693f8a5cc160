"""Networks, objectives and adapters of the ehr workbench. Importing this imports nothing heavy."""

from pathlib import Path
from typing import Any


def load_model(folder: Path | str) -> Any:
    """A model that a run saved (``RUN/model``), in evaluation mode; nothing is fetched and no code of it is run.

    Raises FormatError for a folder that is none.
    """
    from ehr_models.auto import load

    return load(Path(folder))
