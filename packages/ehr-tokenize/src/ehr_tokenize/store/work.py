"""The folder that a token store is made in, ``OUTPUT.running``: what a killed run leaves, and where the next goes on.

    OUTPUT.running/state.json    what the run was begun with, as a digest; another digest is refused
                   source/       records that the source wrote, done when source.json is there
                   fit/          a summary a shard of train (about 4 bytes a number), until the tokenizer is fitted
                   store/        the store as it will be: the tokenizer, then shard by shard
                   records/      counts of each shard that is done

At the end ``store`` becomes OUTPUT in one step. ``OUTPUT.lock`` keeps a second process away.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import MANIFEST, check_free, read_json, write_sealed
from ehr_core.locks import held


@dataclass(frozen=True)
class Work:
    """``OUTPUT.running`` and the places in it."""

    folder: Path

    @property
    def store(self) -> Path:
        """The token store that is being made."""
        return self.folder / "store"

    @property
    def source(self) -> Path:
        """What the source writes, if it writes."""
        return self.folder / "source"

    @property
    def source_done(self) -> Path:
        """There when the source has written everything."""
        return self.folder / "source.json"

    @property
    def fit_done(self) -> Path:
        """There when the store holds the fitted tokenizer."""
        return self.folder / "fitted.json"

    def summary(self, number: int) -> Path:
        """Where the summary of a train shard is kept."""
        return self.folder / "fit" / f"{number}.safetensors"

    def record(self, split: str, number: int) -> Path:
        """Where the counts of a shard are kept."""
        return self.folder / "records" / f"{split}-{number}.json"

    def clear_source(self) -> None:
        """Make the folder of the source empty."""
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()

    def clear_fit(self) -> None:
        """Remove the summaries, which the fitted tokenizer has made superfluous."""
        shutil.rmtree(self.folder / "fit", ignore_errors=True)

    def begin(self, digest: str, now: int) -> int:
        """Note what the run is begun with, or compare it with what an earlier attempt was begun with.

        Returns the ``now`` of the first attempt. Raises FormatError when settings, records or versions differ.
        """
        path = self.folder / "state.json"
        if not path.is_file():
            write_sealed(path, {"digest": digest, "now": now})
            return now
        found = read_json(path, _State)
        if found.digest != digest:
            raise Unfinished(
                f"{self.folder} holds an unfinished store of other settings, records or versions; give another output, "
                "or remove that folder"
            )
        for part in (self.store, self.folder / "fit", self.folder / "records"):
            for left in part.rglob(".*"):  # half a file, of the moment of the kill
                left.unlink()
        return found.now


@dataclass(frozen=True)
class _State:
    digest: str
    now: int


class Unfinished(FormatError):
    """The folder of an earlier run is in the way; it is left as it is."""


@contextlib.contextmanager
def working(output: Path) -> Iterator[Work]:
    """Hold ``OUTPUT.lock`` and give the folder to work in, with what an earlier attempt left there.

    It is removed at the end, and after an error in records or settings, which no second attempt survives. Whatever
    else stops the run leaves it. Raises FormatError when the output exists, EhrError when another process makes it.
    """
    work = Work(output.with_name(f"{output.name}.running"))
    if (output / MANIFEST).is_file() and (work.folder / "state.json").is_file() and not work.store.exists():
        shutil.rmtree(work.folder)  # the attempt that made the output was killed while it tidied up
    check_free(output)
    finished = False
    with held(output, "making"):
        try:
            check_free(output)  # it may have been finished between the two
            work.store.mkdir(parents=True, exist_ok=True)
            yield work
            finished = True
        except (ConfigError, DataError, FormatError, NotApplicable) as error:
            finished = not isinstance(error, Unfinished)
            raise
        finally:
            if finished:
                shutil.rmtree(work.folder, ignore_errors=True)
