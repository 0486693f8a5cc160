"""The ``train`` command: what ``ehr-train`` runs."""

import sys
from pathlib import Path

from ehr_core.config import to_plain
from ehr_core.formats.folder import read_json
from omegaconf import OmegaConf

from ehr_train.launch import processes, serving
from ehr_train.processes.group import Group
from ehr_train.runner.output import assemble, default_output, earlier_output, table
from ehr_train.runner.pipeline import Pipeline
from ehr_train.runner.settings import RunnerConfig
from ehr_train.runner.stages import Stages


def main(settings: RunnerConfig) -> None:
    """Run the pipeline in this process; under torchrun, ranks above 0 wait for the training jobs of rank 0."""
    with serving(settings.world_size) as leader:
        if leader:
            _lead(settings)


def _lead(settings: RunnerConfig) -> None:
    folder = Path(settings.stages or (Path(settings.output) if settings.output else Path("outputs")) / "stages")
    stages = Stages(folder, settings.dry_run)
    pipeline = Pipeline(settings, stages, max(Group.join().size, processes(settings.world_size)))
    pipeline.run()
    if settings.dry_run:
        print(f"{stages.reran} of {len(stages.done)} stages would run", file=sys.stderr)
        return
    output = Path(settings.output) if settings.output else earlier_output(stages) if not stages.reran else None
    if not stages.reran and output is not None and (output / "stages.json").is_file():
        print(f"Nothing to do: all {len(stages.done)} stages are up to date.")
    if output is None:
        output = default_output()
    assemble(output, stages, OmegaConf.to_yaml(OmegaConf.create(to_plain(settings))))
    for note in pipeline.notes:
        print(f"note: {note}")
    if "report" not in stages.done:
        print(f"run: {output / 'pretrain'}")
        return
    print(table(read_json(output / "scores.json")))
    print(f"report: {output / 'report.html'}")
