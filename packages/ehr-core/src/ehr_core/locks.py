"""One process at a time for a folder that is being made."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ehr_core.errors import EhrError


@contextlib.contextmanager
def held(output: Path, words: str) -> Iterator[None]:
    """Hold ``OUTPUT.lock`` beside a folder to make, and remove it at the end.

    Raises EhrError when another process holds it; ``words`` says what that one does, such as ``making``.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EhrError(f"another process is {words} {output}; wait for it, or give another output") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # an open file cannot be removed everywhere
            Path(lock.lock_file).unlink()
        lock.release()
