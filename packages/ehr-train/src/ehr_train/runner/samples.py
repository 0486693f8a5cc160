"""Records and samples as a trained run reads them: tokenized with its tokenizer, for the time being."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.labels import Labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_eval.applying import last_events, token_store
from ehr_eval.datasets import provided, to_predict
from ehr_eval.label_notes import noted, say_notes
from ehr_eval.user_labels import read_user_labels

from ehr_train.runner.settings import SamplesConfig


@contextlib.contextmanager
def opened(run: Run, labels: Path | None, settings: SamplesConfig) -> Iterator[tuple[TokenStore, Labels]]:
    """The records of a source as tokens, and the samples of the splits: labels, or everyone's last event.

    Raises ConfigError, before any work, for splits that there are none of; DataError where no sample is left.
    """
    splits = list(settings.splits)
    if wrong := [split for split in splits if split not in SPLITS]:
        raise ConfigError(f"splits has {wrong[0]!r}; allowed: {', '.join(SPLITS)}")
    whole = to_predict(settings.source)
    with provided(whole) as dataset:
        samples = _samples(labels, dataset.path)
        say_notes(samples)
        tables = {split: table for split, table in samples.tables.items() if split in splits and len(table)}
        if not tables:
            raise DataError(f"there is no sample in the splits {', '.join(splits)}")
        with token_store(whole, run.tokenizer, None) as made:
            assert made is not None, "a run has a tokenizer"
            store = TokenStore(made)
            store.check_known(settings.max_unknown)
            yield store, Labels(samples.name, samples.question, tables, samples.content)


def _samples(labels: Path | None, meds: Path) -> Labels:
    if labels is None:
        return noted(meds, last_events(meds, "now"), fit=False)
    found = read_user_labels(labels, meds, fit=False)
    if len(found) > 1:
        raise ConfigError(f"labels={labels} has the tasks {', '.join(found)}; give the folder of one")
    return next(iter(found.values()))
