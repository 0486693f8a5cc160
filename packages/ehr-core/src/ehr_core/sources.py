"""The source ``meds``: a dataset that is there already."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ehr_core.constants import DATA
from ehr_core.formats.folder import file_digest
from ehr_core.formats.meds import Given, shards, write_view
from ehr_core.plugin import MedsConfig
from ehr_core.protocols import Executor


class MedsSource:
    """A MEDS dataset that is there already. Raises ConfigError for settings that no dataset can have."""

    def __init__(self, settings: MedsConfig):
        self.path = Path(settings.path)
        self.given = Given(settings.split, tuple(settings.birth), settings.latest)
        self.place = self.path if self.given == Given() else None

    def provide(self, output: Path, executor: Executor) -> Path:
        """The dataset's own folder, untouched; a view of it in ``output`` where settings say how to read it.

        Raises DataError or FormatError for the first file that is wrong.
        """
        if self.place is not None:
            shards(self.path)
            return self.path
        if not self.path.is_dir():
            shards(self.path)  # says what is wrong
        shards(write_view(output, self.path, self.given))
        return output

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of every file below ``data`` and ``metadata``, by relative path."""
        parts = (self.path / DATA, self.path / "metadata")
        paths = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            digests = pool.map(file_digest, paths)
            return dict(zip((path.relative_to(self.path).as_posix() for path in paths), digests, strict=True))
