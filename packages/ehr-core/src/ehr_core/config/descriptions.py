"""What settings mean, in the words below their fields, for the help of a command."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator


def described(settings: type) -> dict[str, str]:
    """Field of a dataclass to the text below it, those of its bases included; fields without one are left out."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        found |= dict(_texts(base))
    return found


def _texts(settings: type) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    except (OSError, TypeError):  # made without a file
        return
    (made,) = tree.body
    body = made.body if isinstance(made, ast.ClassDef) else []
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split()).replace("``", "")


def columns(texts: dict[str, str], width: int = 100) -> list[str]:
    """Lines of two columns: names, and texts that are wrapped."""
    indent = max(map(len, texts), default=0) + 4
    return [
        line
        for name, text in texts.items()
        for line in textwrap.wrap(
            text,
            width,
            initial_indent=f"  {name:<{indent - 2}}",
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    ]
