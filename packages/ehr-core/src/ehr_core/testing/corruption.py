"""Damage done to files on purpose, to see that a reader gives the same as before or says in one line what is wrong.

::

    def test_my_reader_survives_damage(tmp_path):
        folder = write_my_folder(tmp_path / "whole")
        check_reader(read_my_folder, folder, tmp_path / "scratch")

Everything is drawn from a seed, so that a failure comes back; its message names the damage.
"""

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehr_core.errors import EhrError
from ehr_core.formats.folder import MANIFEST, SEAL, Manifest, read_json, write_manifest

SECONDS = 60
"""After which a reader counts as hanging."""
Damage = Callable[[bytes, random.Random, Sequence[bytes]], bytes | None]
"""From the content of a file to another; None deletes it. It is given the other files of the folder too."""


def _flip(content: bytes, rng: random.Random, others: Sequence[bytes], times: int = 1) -> bytes:
    changed = bytearray(content)
    for _ in range(times if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zero(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, size = rng.randrange(len(content) + 1), rng.choice([16, 512, 4096])
    return (content[:start] + bytes(size) + content[start + size :])[: len(content)]


def _cut(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _swap(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return rng.choice(others) if others else b""


BYTES: dict[str, Damage] = {
    "one bit flipped": _flip,
    "nine bits flipped": lambda content, rng, others: _flip(content, rng, others, 9),
    "a block of zeros": _zero,
    "cut short": _cut,
    "empty": lambda content, rng, others: b"",
    "deleted": lambda content, rng, others: None,
    "the content of another file": _swap,
}
"""Name to damage of any file."""
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, 2**70, "", "\u0000", [], {}, [[]], {"": None})


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*place, key)
        yield from _places(value[key], (*place, key))


def _edit(content: bytes, rng: random.Random, edit: Callable[[Any, Any], None]) -> bytes:
    """JSON with an edit of one place, wherever it is nested; and where it has a seal, one that fits again or not."""
    value = json.loads(content)
    places = list(_places(value))
    if not places:
        return b"{}" if isinstance(value, list) else b"[]"
    *way, last = rng.choice(places)
    inner = value
    for key in way:
        inner = inner[key]
    edit(inner, last)
    return json.dumps(value).encode()


def _put(wrong: Any) -> Callable[[Any, Any], None]:
    def edit(inner: Any, key: Any) -> None:
        inner[key] = wrong

    return edit


def _drop(inner: Any, key: Any) -> None:
    del inner[key]


def _rename(inner: Any, key: Any) -> None:
    if isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key)
    else:
        inner.append(inner[key])


def _deep(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    levels = rng.choice([200, 100_000])
    return b'{"format":' + b"[" * levels + b"]" * levels + b"}"


JSON: dict[str, Damage] = {
    "a value of another type": lambda content, rng, others: _edit(content, rng, _put(rng.choice(WRONG))),
    "a field is missing": lambda content, rng, others: _edit(content, rng, _drop),
    "a field has another name": lambda content, rng, others: _edit(content, rng, _rename),
    "nested too deep": _deep,
    "a huge number": lambda content, rng, others: content.replace(b": ", b": 1" + b"0" * 5000 + b", ", 1),
}
"""Name to further damage of a JSON file."""


def check_reader(
    read: Callable[[Path], Any],
    whole: Path,
    scratch: Path,
    *,
    seed: int = 0,
    times: int = 2,
    files: str = "*",
    vouched: bool = False,
    skip: Collection[str] = (),
    mended: bool = False,
) -> Counter[str]:
    """Damage each file of a folder in every way, ``times`` over, and read it: the same reading or one line must follow.

    ``read`` takes the place of a copy of the folder ``whole``, and gives values: plain ones, arrays, tables or
    dataclasses. ``files`` is a pattern of those to damage, and ``skip`` names damage that is not done. With ``vouched``
    the manifest gets the digests of the damaged files, as if their writer had made the mistake: a reading may be
    ``other`` then, and still no traceback. ``mended`` says that a reader may make all of the damage good.
    Returns how often each outcome came: ``same``, ``refused``, ``other``. Raises AssertionError for anything else.
    """
    rng = random.Random(seed)
    expected = plain(read(_copy(whole, scratch / "whole")))
    paths = sorted(path.relative_to(whole) for path in whole.rglob(files) if path.is_file() and not path.is_symlink())
    contents = {path: (whole / path).read_bytes() for path in paths}
    outcomes: Counter[str] = Counter()
    for number, path in enumerate(paths):
        others = [content for other, content in contents.items() if other != path and other.suffix == path.suffix]
        damages = BYTES | (JSON if path.suffix == ".json" else {})
        for name, damage in ((name, damage) for name, damage in damages.items() if name not in skip):
            for turn in range(times):
                copy = _copy(whole, scratch / f"{number}")
                damaged = damage(contents[path], rng, others)
                (copy / path).unlink()
                if damaged is not None:
                    (copy / path).write_bytes(damaged)
                if vouched:
                    _vouch(copy, path)
                what = f"{path}: {name} (seed {seed}, turn {turn})"
                found = _outcome(read, copy, expected, what)
                assert vouched or found != "other", f"{what}: the reading is another, and nobody said so"
                outcomes[found] += 1
                shutil.rmtree(copy)
    assert mended or outcomes["refused"], f"nothing was refused of {len(paths)} files; does the reader read them?"
    return outcomes


def _outcome(read: Callable[[Path], Any], copy: Path, expected: Any, damage: str) -> str:
    try:
        with _limited(damage):
            found = plain(read(copy))
    except EhrError as error:
        words = str(error)
        assert len(words.splitlines()) == 1, f"{damage}: the error is not one line: {words!r}"
        assert copy.name in words, f"{damage}: the error does not say where: {words}"
        return "refused"
    except AssertionError:
        raise
    except BaseException as error:
        raise AssertionError(f"{damage}: {type(error).__name__} in the place of one line: {error}") from error
    return "same" if found == expected else "other"


@contextlib.contextmanager
def _limited(damage: str) -> Iterator[None]:
    """Raise AssertionError after SECONDS, where the system has a clock for that."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise AssertionError(f"{damage}: the reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _copy(whole: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target, symlinks=True)
    return target


def plain(value: Any) -> Any:
    """A reading in a form that compares: arrays by type, shape and bytes, tables by their columns."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (str(value.dtype), value.shape, value.tobytes())
    if hasattr(value, "detach"):
        return plain(value.detach().cpu().numpy())
    if hasattr(value, "to_pydict"):
        return repr(value.to_pydict())  # NaN is itself in text
    return repr(value.to_dict(as_series=False)) if hasattr(value, "to_dict") else value


def _vouch(folder: Path, damaged: Path) -> None:
    """Digests for damaged files in the manifests above them; off a damaged JSON file itself its own."""
    if damaged.suffix == ".json" and (folder / damaged).is_file():
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads((folder / damaged).read_text())
            if isinstance(value, dict) and value.pop(SEAL, None):
                (folder / damaged).write_text(json.dumps(value))
    for place in (folder / damaged).parents:
        if (place / MANIFEST).is_file() and place / MANIFEST != folder / damaged:
            reseal(place)
        if place == folder:
            return


def reseal(folder: Path) -> None:
    """Write the manifest of a folder for the files that are in it now, which a test changed on purpose."""
    write_manifest(folder, read_json(folder / MANIFEST, Manifest))
