"""Run folder: everything about one training run, and everything needed to predict with it.

RUN/manifest.json     format "run", who, settings, digest of the token store and its vocabulary
RUN/model/            config.json, model.safetensors: Hugging Face form
RUN/objective.safetensors   the objective's own parameters, where it has any
RUN/tokenizer/        vocabulary.json, prefix.json, tokenizer.json
RUN/checkpoints/      best_model.pt, latest.pt, checkpoint_epoch_N.pt
RUN/logs/metrics_history.json, hyperparameters.json, metadata.json, summary.json, SUMMARY.txt
RUN/plots/  RUN/source/  RUN/environment.txt  RUN/.hydra/  and one folder a tracker
"""

from pathlib import Path

from ehr_core.errors import FormatError
from ehr_core.formats.folder import Manifest, read_json, read_manifest
from ehr_core.formats.vocabulary import Vocabulary

FORMAT, VERSION = "run", 1


class Run:
    """A finished run folder opened for reading. Raises FormatError when it is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path, FORMAT, VERSION)
        self.vocabulary = Vocabulary.load(self.tokenizer)

    @property
    def model(self) -> Path:
        """The model in Hugging Face form."""
        return self.path / "model"

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
        found = read_json(self.path / "logs" / "metrics_history.json")
        return list(found)

    def check_vocabulary(self, other: Vocabulary, where: Path) -> None:
        """Refuse tokens made with another vocabulary than the run's."""
        if other.digest != self.vocabulary.digest:
            raise FormatError(
                f"{where} was tokenized with vocabulary {other.digest[:12]}, but {self.path} was trained with "
                f"{self.vocabulary.digest[:12]}; tokenize with fitted={self.tokenizer}"
            )
