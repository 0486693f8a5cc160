"""Model and objective together: built by name, started from a run, or loaded from one to predict."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.run import Run
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import Question
from ehr_core.plugins import build, registry
from ehr_core.protocols import PROVISIONS, Adapter
from torch import nn

from ehr_train import checkpoint

State = dict[str, torch.Tensor]


class Learner(nn.Module):
    """What a strategy places and an optimizer changes: called with a batch it returns the objective's loss.

    With an adapter all else of the model is frozen: its weights then are those that are trained, and the frozen ones
    are in the run that it started from.
    """

    model: Any
    objective: Any
    adapter: Adapter | None = None

    def __init__(self, model: nn.Module, objective: nn.Module):
        super().__init__()
        self.model, self.objective = model, objective
        self.frozen: State = {}
        """State of an adapted model that is not trained, as it was before a strategy placed it."""

    def adapt(self, settings: Any, folder: Path | None = None) -> None:
        """Give the model a fresh adapter, or the one of a folder. Raises ConfigError or FormatError."""
        self.adapter = build("adapter", settings)
        assert self.adapter is not None
        self.model = self.adapter.load(self.model, folder) if folder else self.adapter.apply(self.model)
        names = trained_names(self.model)
        self.frozen = {name: value for name, value in self.model.state_dict().items() if name not in names}

    def weights(self, get: Callable[[nn.Module], State]) -> dict[str, State]:
        """``model`` (or ``adapter``: what is trained of it) and ``objective``, for a checkpoint.

        ``get`` gives the state of a module, as `Strategy.weights` does.
        """
        model, objective = get(self.model), get(self.objective)
        if self.adapter is None:
            return {"model": model, "objective": objective}
        names = trained_names(self.model)
        return {"adapter": {name: value for name, value in model.items() if name in names}, "objective": objective}

    def restore(self, weights: Mapping[str, Any], path: Path, put: Callable[[nn.Module, State], Any]) -> None:
        """Put back what `weights` gave, with a function such as `Strategy.load_weights`.

        Raises FormatError that names the file.
        """
        found = checkpoint.as_type(weights, checkpoint.Weights, path)
        trained = found.model if self.adapter is None else found.adapter
        if trained is None:
            raise FormatError(f"{path} has no weights of {'the model' if self.adapter is None else 'an adapter'}")
        model = trained if self.adapter is None else {**self.frozen, **trained}
        for module, state in ((self.model, model), (self.objective, found.objective)):
            fitting(put, module, state, path)

    def parameters_by_kind(self) -> dict[str, int]:
        """How many: ``model``, ``objective``, ``total``, ``trainable``, ``adapter``, ``frozen``; shared ones once."""
        sizes = {name: sum(p.numel() for p in getattr(self, name).parameters()) for name in ("model", "objective")}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        adapter = 0 if self.adapter is None else sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {**sizes, "total": total, "trainable": trainable, "adapter": adapter, "frozen": total - trainable}

    def forward(self, batch: Batch) -> Loss:
        """Sum and count of the loss over a batch."""
        loss: Loss = self.objective.loss(self.model, batch)
        return loss


def make_learner(
    model: Any, objective: Any, vocabulary: Vocabulary, columns: Sequence[str], question: Question | None = None
) -> Learner:
    """Build both parts from their settings. Raises ConfigError for a model without what the objective needs."""
    network = make_model(model, vocabulary, columns)
    check_provided(model.name, network, objective.name)
    return Learner(network, make_objective(objective, network, vocabulary, question))


def make_model(settings: Any, vocabulary: Vocabulary, columns: Sequence[str]) -> Any:
    """The network alone."""
    return build("model", settings, vocabulary_size=len(vocabulary), columns=list(columns))


def make_objective(settings: Any, model: Any, vocabulary: Vocabulary, question: Question | None) -> Any:
    """The objective with its head."""
    return build("objective", settings, width=model.width, vocabulary=vocabulary, question=question)


def check_provided(name: str, model: Any, objective: str) -> None:
    """Raise ConfigError when an objective needs of a model what this one, ``name``, does not provide."""
    for need in registry().get("objective", objective).needs:
        if need not in model.provides:
            others = ", ".join(model.provides) or "nothing of the kind"
            raise ConfigError(
                f"objective {objective} needs a {need} model ({PROVISIONS.get(need, need)}); {name} provides {others}. "
                "Choose another model or objective"
            )


def is_causal(model: Any) -> bool:
    """Whether a token's state depends on what comes before it alone."""
    return "causal" in model.provides


def blocks(model: Any) -> list[nn.Module]:
    """Modules of the classes that a model names in ``_no_split_modules``, as those of transformers do, in order."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def open_run(path: Path | str) -> tuple[Run, checkpoint.Weights]:
    """A finished run and the content of its best checkpoint."""
    run = Run(path)
    return run, checkpoint.as_type(checkpoint.read(run.checkpoint), checkpoint.Weights, run.checkpoint)


def model_of(run: Run, content: checkpoint.Weights) -> Any:
    """The model of a run with its best weights, on the CPU."""
    settings: dict[str, Any] = dict(run.settings)
    if content.model is None:
        raise FormatError(f"{run.checkpoint} holds an adapter alone; the run was not finished")
    model = make_model(from_plain("model", settings["model"]), run.vocabulary, content.model_configs.columns)
    put(model, content.model, run.path)
    return model


def load_run(path: Path | str, device: torch.device) -> tuple[Run, Learner]:
    """A finished run with its best weights, on a device, ready to predict."""
    run, content = open_run(path)
    settings: dict[str, Any] = dict(run.settings)
    model = model_of(run, content)
    objective = make_objective(from_plain("objective", settings["objective"]), model, run.vocabulary, run.question)
    put(objective, content.objective, run.path)
    return run, Learner(model, objective).to(device).eval()


def grow_model(model: Any, size: int) -> None:
    """Let the vocabulary of a model grow to ``size`` tokens; ids that it has keep what they learned.

    Raises ConfigError for a model that cannot.
    """
    name, known = type(model).__name__, model.config.vocab_size
    if size < known:
        raise ConfigError(f"{name} knows {known} tokens, and the vocabulary has {size}; it can only grow")
    try:
        model.resize_token_embeddings(size, mean_resizing=False)
    except NotImplementedError:
        raise ConfigError(
            f"the vocabulary grew from {known} to {size} tokens, and {name} cannot: it has no get_input_embeddings; "
            "train it anew"
        ) from None
    weight = model.get_input_embeddings().weight
    rows = model.lm_logits(torch.zeros(1, model.width, dtype=weight.dtype, device=weight.device)).shape[-1]
    if model.config.vocab_size != size or rows < size:
        raise ConfigError(
            f"the vocabulary grew from {known} to {size} tokens, and the output layer of {name} did not: it has "
            f"{rows} rows; its resize_token_embeddings has to see to that"
        )


def trained_names(module: nn.Module) -> set[str]:
    """Names in the module's state of all that is not frozen: parameters that are trained, and buffers."""
    frozen = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return module.state_dict().keys() - frozen


def load_state(module: nn.Module, state: State) -> None:
    """All weights, no more and no fewer, into a module on one device."""
    module.load_state_dict(state, strict=True)


def put(module: nn.Module, state: State, path: Path) -> None:
    """Load all weights, no more and no fewer. Raises FormatError that names the run."""
    fitting(load_state, module, state, path)


def fitting(function: Callable[[nn.Module, State], Any], module: nn.Module, state: State, path: Path) -> None:
    """Call a function that loads weights. Raises FormatError where they do not fit, before any of them is used."""
    own = module.state_dict()
    for name in sorted(own.keys() & state.keys()):
        kind, found = ((value.dtype, value.is_floating_point()) for value in (own[name], state[name]))
        if kind[1] != found[1] or (not kind[1] and kind[0] != found[0]):  # floats of another width are converted
            raise FormatError(f"the weights in {path} do not fit the model: {name} is {found[0]}, expected {kind[0]}")
        if own[name].shape != state[name].shape:
            shapes = " and ".join(str(tuple(value.shape)) for value in (state[name], own[name]))
            raise FormatError(f"the weights in {path} do not fit the model: size mismatch for {name}: {shapes}")
    try:
        function(module, state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise FormatError(f"the weights in {path} do not fit the model: {' '.join(lines[1:2])}") from error


def context_length(wanted: int | None, model: Any) -> int:
    """Positions in a row. Raises ConfigError when the model has fewer, or does not say and none are given."""
    limit: int | None = model.max_positions
    if wanted is None and limit is None:
        raise ConfigError("the model has no limit of positions; give train.context_length")
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(f"train.context_length is {wanted}, and the model has {limit} positions; change one of them")
    return int(limit if wanted is None else wanted)  # type: ignore[arg-type]
