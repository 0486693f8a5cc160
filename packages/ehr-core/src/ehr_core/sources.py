"""The source ``meds``: a dataset that is there already."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ehr_core.constants import DATA
from ehr_core.formats.folder import file_digest
from ehr_core.formats.meds import shards
from ehr_core.plugin import MedsConfig
from ehr_core.protocols import Executor


class MedsSource:
    """A MEDS dataset that is there already."""

    def __init__(self, settings: MedsConfig):
        self.path = self.place = Path(settings.path)

    def provide(self, output: Path, executor: Executor) -> Path:
        """The dataset's own folder, untouched. Raises DataError or FormatError for the first file that is wrong."""
        shards(self.path)
        return self.path

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of every file below ``data`` and ``metadata``, by relative path."""
        parts = (self.path / DATA, self.path / "metadata")
        paths = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            digests = pool.map(file_digest, paths)
            return dict(zip((path.relative_to(self.path).as_posix() for path in paths), digests, strict=True))
