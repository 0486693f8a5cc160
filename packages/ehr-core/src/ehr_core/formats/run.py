"""Run folder: everything about one training run, and everything needed to predict with it.

RUN/manifest.json     format "run", who, settings, digest of the token store and its vocabulary
RUN/model/            config.json, model.safetensors: Hugging Face form
RUN/objective.safetensors   the objective's own parameters, where it has any
RUN/tokenizer/        vocabulary.json, prefix.json, tokenizer.json
RUN/checkpoints/      best_model.pt, latest.pt, checkpoint_epoch_N.pt
RUN/logs/metrics_history.json, hyperparameters.json, metadata.json, summary.json, SUMMARY.txt
RUN/plots/  RUN/source/  RUN/environment.txt  RUN/.hydra/  and one folder a tracker
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Annotated

import msgspec

from ehr_core.errors import FormatError
from ehr_core.formats.folder import MANIFEST, Manifest, digest_of, read_json, read_manifest, typed, verify
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import Question

FORMAT, VERSION = "run", 1
DECIDING = ("model/", "tokenizer/", "objective.safetensors")
"""What decides the answers of a run: weights, shape and tokenizer, not how long training took or who watched."""
BEST, HISTORY = "checkpoints/best_model.pt", "logs/metrics_history.json"
NEEDED = (MANIFEST, "tokenizer", "model", "objective.safetensors", BEST)
"""What predicting with a run needs of its folder."""


class RunContent(msgspec.Struct):
    """What readers need of the content of a run's manifest."""

    context_length: Annotated[int, msgspec.Meta(ge=1)] | None = None
    question: Question | None = None
    stage: str | None = None
    job: str | None = None


class Run:
    """A finished run folder opened for reading. Raises FormatError when it is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path, FORMAT, VERSION, ("tokenizer/",))
        self.content = typed(self.manifest.content, RunContent, self.path / MANIFEST, "$.content")
        self.vocabulary = Vocabulary.load(self.tokenizer)

    @property
    def model(self) -> Path:
        """The model in Hugging Face form, verified."""
        verify(self.path, self.manifest, ["model/"])
        return self.path / "model"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, verified."""
        verify(self.path, self.manifest, [BEST])
        return self.path / BEST

    @property
    def tokenizer(self) -> Path:
        """The fitted tokenizer's state."""
        return self.path / "tokenizer"

    @property
    def settings(self) -> dict[str, object]:
        """Resolved settings of the run: model, objective, train, seed, ..."""
        return self.manifest.settings

    @property
    def history(self) -> list[dict[str, float]]:
        """Logged metrics, one dict a logged step, with ``step``."""
        verify(self.path, self.manifest, [HISTORY])
        return read_json(self.path / HISTORY, list[dict[str, float]])

    @property
    def question(self) -> Question | None:
        """What the labels that it was trained on ask; None for a run without labels."""
        return self.content.question

    @property
    def context_length(self) -> int:
        """Positions of a window in training. Raises FormatError for a run that does not say."""
        if self.content.context_length is None:
            raise FormatError(f"{self.path / MANIFEST} does not say context_length; make the run anew")
        return self.content.context_length

    @property
    def digest(self) -> str:
        """sha256 of what decides the run's answers (`DECIDING`)."""
        return digest_of({n: d for n, d in self.manifest.files.items() if n.startswith(DECIDING)})

    def copy_needed(self, folder: Path) -> Path:
        """Make ``folder``, which does not exist yet, a run folder with all that predicting needs and no more.

        Files are hard links where the file system allows it: files of a run never change.
        """
        for name in NEEDED:
            source, target = self.path / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=link)
            elif source.exists():
                link(source, target)
        return folder

    def check_vocabulary(self, other: Vocabulary, where: Path, grown: bool = False) -> None:
        """Refuse tokens made with another vocabulary than the run's; with ``grown`` one may follow it with more."""
        if grown and is_grown(self.vocabulary, other):
            return
        if other.digest != self.vocabulary.digest:
            raise FormatError(
                f"{where} was tokenized with vocabulary {other.digest[:12]}, but {self.path} was trained with "
                f"{self.vocabulary.digest[:12]}; tokenize with fitted={self.tokenizer}"
            )


def is_grown(old: Vocabulary, new: Vocabulary) -> bool:
    """Whether a vocabulary begins with all tokens of another, in order: whatever knows the old ids knows them still."""
    return len(new) >= len(old) and all(
        (one.token, one.kind) == (other.token, other.kind) for one, other in zip(old.tokens, new.tokens, strict=False)
    )


def link(source: str | Path, target: str | Path) -> None:
    """A second name for a file, or a copy where there can be none."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
