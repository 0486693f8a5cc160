"""The command ``generate``: futures of patients, drawn from a trained run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ehr_core.errors import NotApplicable
from ehr_core.formats.folder import check_free
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.labels import Labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_models.generation import folder as trajectories
from ehr_models.generation.rows import Prompt

from ehr_train.devices import choose_device
from ehr_train.learner import load_run
from ehr_train.loader.samples import Samples
from ehr_train.runner.samples import opened
from ehr_train.runner.settings import GenerateConfig


def generate(settings: GenerateConfig) -> trajectories.Trajectories:
    """Draw trajectories of every sample into OUTPUT and open them; what OUTPUT has already is not drawn again.

    Raises ConfigError for a model or settings that cannot serve, DataError for samples that are not in the records.
    """
    output = Path(settings.output)
    if not (output / trajectories.FACTS).is_file():
        check_free(output)
    run, learner = load_run(settings.run, choose_device(settings.device))
    if not {"causal", "cache"} <= set(learner.model.provides):
        raise NotApplicable(f"{run.path} is a model that cannot go on from what it reads: it needs causal and cache")
    labels = Path(settings.labels) if settings.labels is not None else None
    with opened(run, labels, settings) as (store, samples):
        prompts = prompts_of(run, store, samples)
        intervals = Intervals.load(run.tokenizer)
        return trajectories.generate(learner.model, run.vocabulary, prompts, settings.generation, intervals, output)


def prompts_of(run: Run, store: TokenStore, samples: Labels) -> Iterator[Prompt]:
    """What the run's model may see of each sample: its static prefix and the newest tokens up to its time."""
    for split in samples.splits:
        table = samples.tables[split]
        windows = Samples(store, split, table, None, run.context_length)
        lines = windows.timelines
        times = table["prediction_time"].to_numpy().astype("datetime64[us]").astype(np.int64)
        for index, (subject, time) in enumerate(zip(table["subject_id"].to_pylist(), times.tolist(), strict=True)):
            shard = lines.tables[lines.shard_S[windows.subject_N[index]]]
            start, length = int(windows.start_N[index]), int(windows.length_N[index])
            lead = int(windows.lead_N[index])
            tokens = np.concatenate(
                [windows.lead_NP[index, :lead], shard.token[start : start + length].astype(np.int64)]
            )
            newest = int(shard.time[start + length - 1]) if length else None
            yield Prompt(subject, time, tokens, prefix=len(store.prefix), last_time=newest)


def main(settings: GenerateConfig) -> None:
    """`generate`, and how many there are on stdout."""
    found = generate(settings)
    print(f"{len(found):,} trajectories in {found.path}")
