"""The stages from records to report, in order. Siblings are reached by name: their commands, their components."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehr_core.config import to_plain
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import MANIFEST, digest_of, file_digests, new_folder, read_json
from ehr_core.formats.run import Run
from ehr_core.formats.tables import label_splits, read_labels
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugins import build, registry

from ehr_train.job import TrainJob, adapter_folder
from ehr_train.launch import train
from ehr_train.runner.settings import CHOICES, RunnerConfig
from ehr_train.runner.stages import Stages, code_digest, command_key, component_key, quiet_stdout, say

PREDICTIONS = "predictions.parquet"
NOT_APPLICABLE = "not_applicable.json"


@dataclass(frozen=True)
class Made:
    """A stage's folder with the key that stands for its content."""

    path: Path
    key: Any


def command(name: str, **settings: Any) -> None:
    """Run a sibling's command by name with the given settings over its defaults."""
    component = registry().get("command", name)
    assert component.config is not None, f"command {name} has no settings"
    with quiet_stdout():
        component.load()(component.config(**settings))


def meds_source(path: Path) -> Any:
    """Settings of the source that reads a MEDS folder where it is."""
    config = registry().get("source", "meds").config
    assert config is not None
    return config(path=str(path))


class Pipeline:
    """One composed configuration on its way through the stages."""

    def __init__(self, settings: RunnerConfig, stages: Stages, world_size: int):
        self.settings, self.stages, self.world_size = settings, stages, world_size
        self.notes: list[str] = []

    def run(self) -> None:
        """All stages; afterwards ``stages.done`` names their folders. A store that is given is trained on alone."""
        s = self.settings
        if s.adapter is not None and s.start_from is None:
            raise ConfigError(
                "adapter needs a trained model: give start_from=RUN, or fine-tune this run's model with "
                "predictors.finetuned.adapter"
            )
        if s.start_from is not None:
            Run(s.start_from)  # a mistake shows before any stage runs
        if s.store is not None:
            self.pretrain(given_store(s))
            return
        meds = self.source()
        labels = self.labels(meds)
        store = self.tokenize(meds)
        pretrained = self.pretrain(store)
        predictions = self.predict(meds, labels, store, pretrained)
        collected = self.collect(predictions)
        scores = self.evaluate(collected)
        self.report(collected, scores, pretrained, predictions)

    # -- records, labels, tokens

    def source(self) -> Made:
        """The MEDS dataset: written once, or the user's folder where it is."""
        source = build("source", self.settings.source)
        fingerprint = dict(source.fingerprint())
        key = {"source": component_key("source", self.settings.source), "files": fingerprint}
        if fingerprint:  # the place of the files is no part of their content
            key["source"]["settings"].pop("path", None)
        path = self.stages.path("data", key)
        executor = build("executor", self.settings.executor)
        if path.exists() or not fingerprint:
            make = functools.partial(_provide, source, executor)
            return Made(self.stages.run("data", key, make, self.settings.source.name), key)
        scratch = path.with_name(path.name + ".scratch")
        with quiet_stdout():
            place = source.provide(scratch, executor)
        if place == scratch:
            scratch.rename(path)
        say("data", "checked", str(place))
        return Made(place, key)

    def labels(self, meds: Made) -> dict[str, Made]:
        """Task name to a folder of labels: the user's, or what the tasks give on this dataset."""
        if self.settings.labels is not None:
            return given_labels(Path(self.settings.labels))
        key = {
            "meds": meds.key,
            "tasks": {name: component_key("task", task) for name, task in self.settings.task.items()},
            "code": command_key("label"),
        }

        def make(output: Path) -> None:
            source = meds_source(meds.path)
            command(
                "label", source=source, executor=self.settings.executor, task=self.settings.task, output=str(output)
            )

        made = self.stages.run("labels", key, make, ", ".join(self.settings.task))
        if self.stages.dry_run and not made.exists():
            return {name: Made(made / name, [key, name]) for name in self.settings.task}
        found = {p.name: Made(p, [key, p.name]) for p in sorted(made.iterdir()) if label_splits(p)}
        missing = [name for name in self.settings.task if name not in found]
        self.notes += [f"{name}: this dataset gives no labels for the task" for name in missing]
        if not found:
            raise DataError("no task gave a label on this dataset; give your own with labels=DIR")
        return found

    def tokenize(self, meds: Made) -> Made:
        """The token store, fitted on the train split."""
        key = {
            "meds": meds.key,
            "tokenizer": component_key("tokenizer", self.settings.tokenizer),
            "code": command_key("tokenize"),
        }
        fitted, words = None, self.settings.tokenizer.name
        if self.settings.start_from is not None:
            run = Run(self.settings.start_from)
            key["tokenizer"] = {"fitted": file_digests(run.tokenizer), "code": key["tokenizer"]["code"]}
            fitted, words = str(run.tokenizer), f"as {run.path.name}"

        def make(output: Path) -> None:
            command(
                "tokenize",
                source=meds_source(meds.path),
                tokenizer=self.settings.tokenizer,
                executor=self.settings.executor,
                fitted=fitted,
                output=str(output),
            )

        return Made(self.stages.run("tokens", key, make, words), key)

    # -- training and prediction

    def pretrain(self, store: Made) -> Made:
        """The run folder of the pretrained model. A run that was killed goes on where its last checkpoint was."""
        s = self.settings
        key = {
            "store": store.key,
            "model": component_key("model", s.model),
            "objective": component_key("objective", s.objective),
            "train": to_plain(s.train),
            "trackers": sorted(s.tracker),
            "seed": s.seed,
            "world_size": self.world_size,
            "code": code_digest("ehr_train"),
        }
        words = f"{s.model.name}, {s.objective.name}"
        if s.start_from is not None:
            run = Run(s.start_from)
            key |= {"model": {"start": run.manifest.digest}, "adapter": s.adapter}
            if (folder := adapter_folder(s.adapter)) is not None:
                key["adapter"] = file_digests(folder)
            words = f"{run.path.name}, {s.objective.name}" + (", adapter" if s.adapter is not None else "")

        def make(output: Path) -> None:
            job = TrainJob(
                store=str(store.path),
                output=str(output),
                model=s.model,
                objective=s.objective,
                strategy=s.strategy,
                trackers=s.tracker,
                train=s.train,
                seed=s.seed,
                start=s.start_from,
                adapter=s.adapter,
            )
            train(job, self.world_size)

        return Made(self.stages.run("pretrain", key, make, words), key)

    def predict(
        self, meds: Made, labels: dict[str, Made], store: Made, pretrained: Made
    ) -> dict[tuple[str, str], Made]:
        """(task, predictor) to a folder with predictions or with the reason why there are none."""
        s = self.settings
        made = {}
        for task, answers in labels.items():
            for name, predictor in s.predictors.items():
                kind = "baseline" if name in registry().components["baseline"] else "predictor"
                key = {
                    "meds": meds.key,
                    "labels": answers.key,
                    "predictor": component_key(kind, predictor),
                    "seed": s.seed,
                    "code": command_key("predict"),
                }
                if kind == "predictor":
                    key |= {"run": pretrained.key, "store": store.key, "world_size": self.world_size}
                    key["task"] = to_plain(s.task.get(task))

                def make(output: Path, task: str = task, name: str = name) -> None:
                    command(
                        "predict",
                        source=meds_source(meds.path),
                        labels=str(labels[task].path),
                        task=s.task.get(task),
                        predictors={name: s.predictors[name]},
                        run=str(pretrained.path),
                        store=str(store.path),
                        output=str(output),
                        seed=s.seed,
                        world_size=self.world_size,
                    )

                made[task, name] = Made(self.stages.run(f"predict/{task}/{name}", key, make, inside=name), key)
                reason = made[task, name].path / name / NOT_APPLICABLE
                if reason.is_file():
                    why = read_json(reason)["reason"]
                    self.notes.append(f"{task}, {name}: not applicable: {why}")
                    say("", "n/a", why)
        return made

    # -- scores and report

    def collect(self, predictions: dict[tuple[str, str], Made]) -> Made:
        """All predictions in one tree, <task>/<predictor>/predictions.parquet."""
        key = [[task, name, made.key] for (task, name), made in predictions.items()]

        def make(output: Path) -> None:
            with new_folder(output) as folder:
                for (task, name), made in predictions.items():
                    for file in sorted((made.path / name).glob("*")):
                        if file.name in (PREDICTIONS, NOT_APPLICABLE, MANIFEST):
                            target = folder / task / name / file.name
                            target.parent.mkdir(parents=True, exist_ok=True)
                            target.write_bytes(file.read_bytes())

        return Made(self.stages.run("predictions", key, make), key)

    def evaluate(self, collected: Made) -> Made:
        """scores.json."""
        evaluation = to_plain(self.settings.evaluation)
        key = {
            "predictions": collected.key,
            "evaluation": evaluation,
            "seed": self.settings.seed,
            "code": command_key("evaluate"),
        }

        def make(output: Path) -> None:
            predictions, seed = str(collected.path), self.settings.seed
            with new_folder(output) as folder:
                command("evaluate", predictions=predictions, seed=seed, output=str(folder), **evaluation)

        return Made(self.stages.run("scores", key, make), key)

    def report(self, collected: Made, scores: Made, pretrained: Made, predictions: dict[tuple[str, str], Made]) -> Made:
        """report.html."""
        runs = [str(pretrained.path)]
        for (_, name), made in predictions.items():
            if (made.path / name / "run" / "manifest.json").is_file():
                runs.append(str(made.path / name / "run"))
        title = self.settings.recipe.title
        key = {"scores": scores.key, "run": pretrained.key, "notes": self.notes, "title": title}
        key["code"] = command_key("report")

        def make(output: Path) -> None:
            with new_folder(output) as folder:
                places = {"scores": str(scores.path), "predictions": str(collected.path), "output": str(folder)}
                command("report", **places, runs=runs, title=title, notes=self.notes)

        return Made(self.stages.run("report", key, make), key)


def _provide(source: Any, executor: Any, output: Path) -> None:
    with new_folder(output) as folder, quiet_stdout():
        place = source.provide(folder, executor)
    if place != folder:
        raise NotApplicable(f"source {source.settings.name!r} wrote nothing and names no files that it reads")


def given_store(settings: RunnerConfig) -> Made:
    """The user's token store. Raises ConfigError when settings ask for records as well."""
    usual = {name: registry().components[name].get(str(CHOICES[name])) for name in ("source", "tokenizer")}
    asked = [n for n, part in usual.items() if not part or not part.config or getattr(settings, n) != part.config()]
    if settings.labels is not None:
        asked.append("labels")
    if asked:
        raise ConfigError(
            f"store={settings.store} has its tokens already and is only trained on; leave out {', '.join(asked)}, or "
            "leave out store"
        )
    store = TokenStore(settings.store or "")
    return Made(store.path, store.manifest.digest)


def given_labels(folder: Path) -> dict[str, Made]:
    """The user's labels: one task (split files directly inside) or one folder a task. Every file is checked."""
    files = ", ".join(f"{split}.parquet" for split in SPLITS)
    if not folder.is_dir():
        raise FormatError(f"labels={folder} is not a folder; expected {files}")
    tasks = [folder] if label_splits(folder) else [p for p in sorted(folder.iterdir()) if label_splits(p)]
    if not tasks:
        raise FormatError(f"labels={folder} has none of {files}, and no folder in it has")
    found = {}
    for task in tasks:
        missing = [split for split in SPLITS if split not in label_splits(task)]
        if missing:
            raise FormatError(f"{task} lacks {missing[0]}.parquet; a task needs {', '.join(SPLITS)}")
        for split in SPLITS:
            read_labels(task, split)
        found[task.resolve().name] = Made(task, digest_of(file_digests(task)))
    return found
