"""A source's records as a MEDS dataset that is kept."""

from pathlib import Path

from ehr_core.errors import ConfigError
from ehr_core.formats.folder import new_folder
from ehr_core.formats.meds import shards
from ehr_core.plugin import MedsConfig
from ehr_core.plugins import build
from ehr_core.protocols import Source

from ehr_tokenize.plugin import MakeConfig


def make(settings: MakeConfig) -> Path:
    """Write the MEDS dataset of a source to ``settings.output`` and return that folder.

    Raises ConfigError for a source whose records are MEDS already, FormatError for an output that is not free.
    """
    source: Source = build("source", settings.source)
    if source.place is not None or isinstance(settings.source, MedsConfig):
        raise ConfigError(f"source={settings.source.name} has its records as MEDS already; there is nothing to make")
    output, executor = Path(settings.output), build("executor", settings.executor)
    with new_folder(output) as partial:
        source.provide(partial, executor)
        shards(partial)
    return output
