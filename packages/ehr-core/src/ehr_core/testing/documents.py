"""Command lines that a README prints, as a test can run them."""

import re
import shlex
from pathlib import Path


def printed_commands(readme: Path, script: str, places: dict[str, str]) -> list[list[str]]:
    """Arguments of each line of a README's first code block that calls a script, in order.

    ``places`` says what stands for the words in capitals; comments, and what follows two spaces after the arguments,
    are left out.
    """
    block = re.search(r"^```\w*\n(.*?)^```", readme.read_text(), re.S | re.M)
    assert block is not None, f"{readme} has no code block"
    word = re.compile("|".join(rf"\b{name}\b" for name in places))
    lines = [line for line in block[1].splitlines() if line.split()[:1] == [script]]
    found = [shlex.split(line, comments=True)[1:] for line in lines]
    return [[word.sub(lambda match: places[match[0]], argument) for argument in arguments] for arguments in found]
