"""Token tables that start from code vectors, the folders that ``ehr-embed`` writes.

Rows with a vector keep every bit through ``init_weights()``, saving, loading, tying and resizing: which rows those are
is a buffer beside the table. Between vectors and model there may be a linear layer, which is trained and starts as a
scaled identity; the tied output layer goes back through it.

Shapes: V tokens, P rows of the table, C width of the vectors, D width of the embeddings.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.arrays import map_arrays
from ehr_core.formats.folder import read_json, read_manifest
from ehr_core.formats.vocabulary import Vocabulary
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.bert_settings import CodeVectorsConfig

FORMAT, VERSION = "code-vectors", 1
Network = TypeVar("Network", bound=Any)


class Projection(nn.Linear):
    """From code vectors to embeddings, without a bias."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, bias=False)


class CodeEmbedding(nn.Embedding):
    """A token table (P, C) with some rows given, and maybe a projection to D."""

    given: Tensor
    """(P,) bool: rows that came from vectors."""

    def __init__(self, num_rows: int, width: int, out: int, project: bool, freeze: bool):
        if not project and width != out:
            raise ConfigError(
                f"code vectors of width {width} do not fit embeddings of width {out}: give code_vectors.project=true, "
                f"or a model with embeddings of width {width}"
            )
        super().__init__(num_rows, width)
        self.weight.requires_grad_(not freeze)
        self.projection = Projection(width, out) if project else None
        self.register_buffer("given", torch.zeros(num_rows, dtype=torch.bool))

    def forward(self, token_BT: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T) ids to (B, T, D)."""
        found = functional.embedding(token_BT, self.weight)
        return found if self.projection is None else self.projection(found)


def into_table(table: nn.Embedding, x: Tensor) -> Tensor:
    """(..., D) to (..., C), so that the product with the table is that with the projected table."""
    if isinstance(table, CodeEmbedding) and table.projection is not None:
        return functional.linear(x, table.projection.weight.T)
    return x


@contextlib.contextmanager
def keeping(module: nn.Module) -> Iterator[None]:
    """Whatever happens to a table inside, its given rows come out as they were."""
    if not isinstance(module, CodeEmbedding) or module.weight.is_meta:
        yield
        return
    kept = module.weight[module.given].clone()
    yield
    module.weight[module.given] = kept


def replace_table(model: Any) -> None:
    """Give the model the kind of table that ``config.code_vectors`` describes, with no row given yet."""
    found = getattr(model.config, "code_vectors", None)
    if found:
        old = model.get_input_embeddings()
        table = CodeEmbedding(old.num_embeddings, found["width"], old.embedding_dim, found["project"], found["freeze"])
        model.set_input_embeddings(table)


def freeze_again(model: Any) -> None:
    """Freeze the table that ``config.code_vectors`` says is frozen; loading weights makes new parameters."""
    if (getattr(model.config, "code_vectors", None) or {}).get("freeze"):
        model.get_input_embeddings().weight.requires_grad_(False)


def started(make: type[Network], config: Any, settings: CodeVectorsConfig) -> Network:
    """A new model whose table starts from ``settings.path``, if it names a folder.

    ``settings`` come out with width and digest filled in and without the path: a run that is loaded needs the shape
    and not the folder, because its weights are its own.
    """
    if not settings.path and not settings.width:
        return make(config)
    vector_VC: Tensor | None = None
    if settings.path:
        folder, settings.path = settings.path, None
        vector_VC, given_V, settings.digest = read(folder, config.vocab_size)
        settings.width = vector_VC.shape[1]
    config.code_vectors = {"width": settings.width, "project": settings.project, "freeze": settings.freeze}
    config.code_vectors["digest"] = settings.digest
    model = make(config)
    if vector_VC is not None:
        fill(model, vector_VC, given_V)
    return model


def start_from_vectors(
    model: Any, folder: Path | str, vocabulary: Vocabulary | None = None, project: bool = True, freeze: bool = False
) -> None:
    """Give a network of this package, in place, a token table that starts from a folder of code vectors.

    Raises FormatError for vectors of another vocabulary (without ``vocabulary``, of another size).
    """
    vector_VC, given_V, digest = read(Path(folder), model.config.vocab_size, vocabulary)
    model.config.code_vectors = {"width": vector_VC.shape[1], "project": project, "freeze": freeze, "digest": digest}
    old = model.get_input_embeddings().weight
    replace_table(model)
    model.get_input_embeddings().to(device=old.device, dtype=old.dtype)
    model._init_weights(model.get_input_embeddings())
    fill(model, vector_VC, given_V)


def read(folder: Path, size: int, vocabulary: Vocabulary | None = None) -> tuple[Tensor, Tensor, str]:
    """Vectors (V, C) float32, which of them there are (V,), and the folder's digest. Raises FormatError."""
    manifest = read_manifest(folder, FORMAT, VERSION)
    vector_VC, origin_V = (
        map_arrays(folder / "vector.safetensors").get("vector_VD"),
        read_json(folder / "origin.json", list[str]),
    )
    if vector_VC is None or vector_VC.ndim != 2 or len(vector_VC) != len(origin_V):
        raise FormatError(f"{folder}: vector.safetensors and origin.json do not fit each other; make them anew")
    digest = manifest.content.get("vocabulary")
    if len(vector_VC) != size or (vocabulary is not None and vocabulary.digest != digest):
        raise FormatError(
            f"{folder} has vectors for another vocabulary ({len(vector_VC)} tokens) than the model's ({size}): "
            "make them with ehr-embed store=STORE of the store to train on"
        )
    return torch.tensor(vector_VC), torch.tensor([bool(origin) for origin in origin_V]), str(manifest.digest)


@torch.no_grad()
def fill(model: Any, vector_VC: Tensor, given_V: Tensor) -> None:
    """Write the vectors into the table. Through a projection all rows then start as large as a table of the model."""
    table = model.get_input_embeddings()
    V, std = len(given_V), model.config.initializer_range
    table.given[:V] = given_V.to(table.given.device)
    vector_VC = vector_VC.to(table.weight)
    if table.projection is not None and bool(given_V.any()):
        size = float(vector_VC[table.given[:V]].square().mean().sqrt()) or 1.0
        nn.init.eye_(table.projection.weight).mul_(std / size)
        table.weight.normal_(0.0, size)
    table.weight[:V][table.given[:V]] = vector_VC[table.given[:V]]
