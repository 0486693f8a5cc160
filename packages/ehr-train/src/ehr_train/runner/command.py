"""The command ``train``: what ``ehr-train`` runs, and the same as a function."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core.config import to_plain
from ehr_core.stages import say
from ehr_eval.evaluation import read_scores
from omegaconf import OmegaConf

from ehr_train.launch import processes, serving
from ehr_train.processes.group import Group
from ehr_train.runner.output import assemble, check_output, default_output, earlier_output, table
from ehr_train.runner.plan import Plan, check_some_labels, make_plan
from ehr_train.runner.settings import RunnerConfig


@dataclass(frozen=True)
class Result:
    """What a run of the runner left."""

    path: Path
    """The folder with report.html, predictions/, fitted/ and links to the stages; without a report, with the run."""
    scores: dict[str, Any] | None
    """The content of scores.json."""
    notes: list[str] = field(default_factory=list)
    """Why something could not be answered."""
    stages: int = 0
    """How many there are."""
    reran: int = 0
    """Stages that were not done already."""

    @property
    def report(self) -> Path | None:
        """report.html."""
        return self.path / "report.html" if self.scores is not None else None


def main(settings: RunnerConfig) -> None:
    """Run the pipeline in this process; under torchrun, ranks above 0 wait for the training jobs of rank 0."""
    with serving(settings.world_size) as leader:
        if leader:
            _show(run(settings), settings)


def run(settings: RunnerConfig) -> Result | None:
    """Any MEDS dataset to a trained and evaluated model. None after a dry run.

    Everything that can be refused is refused before any work, in one line. What is done already is not done again.
    """
    output = Path(settings.output) if settings.output else None
    stages = Path(settings.stages) if settings.stages else (output or Path("outputs")) / "stages"
    if output is not None:
        check_output(output, _shown(settings))
    plan = make_plan(settings, stages, max(Group.join().size, processes(settings.world_size)))
    if settings.dry_run:
        _plan_only(plan)
        return None
    graph = plan.graph
    for stage in graph.stages:
        if stage.name == "tokens":
            check_some_labels(plan)
        if stage is plan.run:
            _say_sizes(plan)
        graph.do(stage)
    if output is None:
        output = (earlier_output(graph) if not graph.ran else None) or default_output()
    assemble(output, plan, _shown(settings))
    scores = read_scores(output).content if (output / "scores.json").is_file() else None
    parts = [(task, stage) for task, stage in plan.labels.items()]
    parts += [(f"{task}, {name}", stage) for (task, name), stage in plan.predicted.items()]
    notes = [f"{what}: not applicable: {stage.reason}" for what, stage in parts if stage.reason]
    return Result(output, scores, notes, len(graph.stages), len(graph.ran))


def _shown(settings: RunnerConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(settings)))


def _plan_only(plan: Plan) -> None:
    """Say what would run, and how large the training is, as far as that is known before the data is there."""
    waiting = plan.graph.plan()
    _say_sizes(plan)
    print(f"{len(waiting)} of {len(plan.graph.stages)} stages would run", file=sys.stderr)


def _say_sizes(plan: Plan) -> None:
    from ehr_train.runner.sizing import sizes

    for line in sizes(plan):
        say("", "", line)


def _show(result: Result | None, settings: RunnerConfig) -> None:
    if result is None:
        return
    if not result.reran:
        print(f"Nothing to do: all {result.stages} stages are up to date.")
    for note in result.notes:
        print(f"note: {note}")
    if result.scores is not None:
        print(table(result.scores))
        print(f"report: {result.report}")
    else:
        print(f"run: {result.path / 'pretrain'}")
