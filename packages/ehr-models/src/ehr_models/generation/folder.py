"""Trajectories in a folder: written as they come, and gone on with after a kill.

    FOLDER/generation.json    what decides the trajectories: settings, vocabulary, intervals, weights
    FOLDER/part-N.parquet     subject_id, prediction_time, draw, tokens, stop_reason, elapsed_seconds, prompt

A part holds all draws of some prompts. ``elapsed_seconds`` count from the prediction time, and ``prompt`` is a digest
of the tokens that a trajectory goes on from.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.folder import check_free, digest_of, read_json, typed, write_sealed
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.pages import checked
from ehr_core.formats.parquet import read_table, write_table
from ehr_core.formats.vocabulary import Vocabulary
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

from ehr_models.digest import weights_digest
from ehr_models.generation.engine import Engine
from ehr_models.generation.rows import Prompt, Trajectory
from ehr_models.generation.settings import GenerationConfig

SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("draw", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("stop_reason", pa.string()),
        ("elapsed_seconds", pa.float64()),
        ("prompt", pa.string()),
    ]
)
FACTS = "generation.json"
ADAPTED: Any = (BaseTunerLayer, ModulesToSaveWrapper)
"""Layers of peft: those with adapters, and those that adapters have a copy of."""
Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Facts:
    """``generation.json``."""

    settings: dict[str, Any]
    vocabulary: str
    intervals: str
    adapters: list[str]
    weights: str


class Trajectories:
    """A folder of trajectories opened for reading. Raises FormatError when it is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        found = read_json(self.path / FACTS, Facts)
        settings = {"rows": GenerationConfig.rows, **found.settings}
        self.settings = typed(settings, GenerationConfig, self.path / FACTS, "$.settings")
        self.vocabulary_digest = found.vocabulary
        """Of the vocabulary whose ids the tokens are."""

    def tables(self) -> Iterator[pa.Table]:
        """The parts, in the order in which they were written. Raises FormatError for a damaged file."""
        for path in parts(self.path):
            yield _read(path)

    def table(self) -> pa.Table:
        """All trajectories, ordered by subject, time and draw."""
        table = pa.concat_tables([SCHEMA.empty_table(), *self.tables()])
        return table.sort_by([(name, "ascending") for name in ("subject_id", "prediction_time", "draw")])

    def __len__(self) -> int:
        return sum(pq.ParquetFile(checked(path)).metadata.num_rows for path in parts(self.path))


def generate(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Iterable[Prompt],
    settings: GenerationConfig,
    intervals: Intervals,
    output: Path,
) -> Trajectories:
    """Draw trajectories of all prompts into a folder; what it has already is not drawn again.

    ``model`` provides causal and cache, and is on its device; ``vocabulary`` and ``intervals`` are those of its run
    (``run.vocabulary``, ``Intervals.load(run.tokenizer)``). Raises ConfigError for a model or settings that cannot
    serve, and as `draw_into` does.
    """
    draw_into(output, Engine(model, vocabulary, settings, intervals), prompts)
    return Trajectories(output)


def draw_into(folder: Path, engine: Engine, prompts: Iterable[Prompt], part_rows: int = 4096) -> None:
    """Draw what the folder does not have yet of these prompts, at least ``part_rows`` trajectories a file.

    Raises FormatError when the folder was begun with other settings, vocabulary, weights or adapters in use, or has
    trajectories from other tokens; DataError for a second prompt of the same subject and time.
    """
    _claim(folder, engine)
    digests: dict[Key, str] = {}
    waiting: dict[Key, list[Trajectory]] = {}
    full: list[Trajectory] = []
    for one in engine.generate(_left(prompts, finished(folder), digests, folder)):
        key = (one.subject_id, one.time)
        waiting.setdefault(key, []).append(one)
        if len(waiting[key]) == engine.settings.draws:
            full += sorted(waiting.pop(key), key=lambda found: found.draw)
        if len(full) >= part_rows:
            _write(folder, full, digests)
            full = []
    if full:
        _write(folder, full, digests)


def parts(folder: Path) -> list[Path]:
    """Files with trajectories, in the order in which they were written."""
    return sorted((path for path in folder.glob("part-*.parquet") if path.stem[5:].isdigit()), key=_number)


def finished(folder: Path) -> dict[Key, str]:
    """Prompts, as (subject, microseconds), that have all their draws in the folder, and their digests."""
    found: dict[Key, str] = {}
    for path in parts(folder):
        table = _read(path)
        time_N = table["prediction_time"].cast(pa.int64()).to_pylist()
        keys = zip(table["subject_id"].to_pylist(), time_N, strict=True)
        found.update(zip(keys, table["prompt"].to_pylist(), strict=True))
    return found


def acting(model: Any) -> tuple[list[str], str]:
    """Adapters in use, and a digest of the tensors that decide the output: those of idle adapters are left out."""
    scales: set[tuple[str, str, float]] = set()
    idle: set[str] = set()
    for path, layer in model.named_modules():
        if not isinstance(layer, ADAPTED):
            continue
        active = [layer.active_adapter] if isinstance(layer.active_adapter, str) else layer.active_adapter
        own = getattr(layer, "adapter_layer_names", ("modules_to_save",))
        for key in layer.state_dict():
            part, _, rest = key.partition(".")
            name = rest.partition(".")[0]
            if part not in own:
                continue
            if layer.disable_adapters or name not in active:
                idle.add(f"{path}.{key}")
            else:
                scales.add((path, name, float(getattr(layer, "scaling", {}).get(name, 1.0))))
    return sorted({name for _, name, _ in scales}), digest_of([weights_digest(model, idle), sorted(scales)])


def _left(prompts: Iterable[Prompt], done: dict[Key, str], digests: dict[Key, str], folder: Path) -> Iterator[Prompt]:
    """Prompts that are not done; ``digests`` gets those of all."""
    for number, prompt in enumerate(prompts):
        key = (prompt.subject_id, prompt.time)
        if key in digests:
            raise DataError(f"prompt {number} has the subject and time of an earlier one; give each of them once")
        digests[key] = _digest(prompt)
        if key not in done:
            yield prompt
        elif done[key] != digests[key]:
            raise FormatError(
                f"{folder} has trajectories for the subject and time of prompt {number} from other tokens or "
                "another static prefix; give another folder, or remove it to draw anew"
            )


def _digest(prompt: Prompt) -> str:
    tokens = np.asarray(prompt.tokens)
    return hashlib.sha256(f"{prompt.prefix} {prompt.waited} {tokens.tolist()}".encode()).hexdigest()[:16]


def _number(path: Path) -> int:
    return int(path.stem[5:])


def _read(path: Path) -> pa.Table:
    table = read_table(path)
    try:
        return table.cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise FormatError(
            f"{path} has no trajectories with the columns {', '.join(SCHEMA.names)}; remove it to draw anew"
        ) from error


def _write(folder: Path, found: list[Trajectory], digests: dict[Key, str]) -> None:
    """Write one more file, behind all that are there; it is there whole or not at all."""
    names = ("subject_id", "time", "draw", "tokens", "stop_reason", "seconds")
    columns = [[getattr(one, name) for one in found] for name in names]
    columns.append([digests[one.subject_id, one.time] for one in found])
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
    number = max(map(_number, parts(folder)), default=-1) + 1
    write_table(folder / f"part-{number:06d}.parquet", table)


def _claim(folder: Path, engine: Engine) -> None:
    """Say what the folder's trajectories are drawn from, or see that it is still the same."""
    settings = dataclasses.asdict(engine.settings)
    del settings["rows"]  # it decides nothing about the result
    adapters, weights = acting(engine.model)
    facts = dataclasses.asdict(
        Facts(settings, engine.vocabulary.digest, digest_of(engine.intervals), adapters, weights)
    )
    if not (folder / FACTS).exists():
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / FACTS, facts)
    elif (found := dataclasses.asdict(read_json(folder / FACTS, Facts))) != facts:
        other = sorted(name for name in facts if found[name] != facts[name])
        raise FormatError(
            f"{folder} was begun with other {', '.join(other)}; give another folder, or remove it to draw anew"
        )
