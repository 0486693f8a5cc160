"""Reading checkpoints that hold foreign objects, without running anything of theirs.

ETHOS pickles a ``GPT2Config`` and EHR_FM an OmegaConf config beside the weights. ``torch.load(weights_only=True)``
refuses them by name. To allow the classes themselves would run their code on what the file says; here each name stands
for a class of this module that only remembers what it was given. Any other name is refused.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import FormatError

OMEGACONF = ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata")
NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode")
NAMES = (
    "transformers.models.gpt2.configuration_gpt2.GPT2Config",
    *(f"omegaconf.{name}" for name in OMEGACONF),
    *(f"omegaconf.nodes.{name}" for name in NODES),
    "typing.Any",
    "collections.defaultdict",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "str", "float")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    "numpy.dtype",
    "_codecs.encode",
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),
)
"""What a checkpoint may name beyond what torch takes anyway."""


class Inert:
    """Stands for an object of a foreign class: its arguments and its state, and no behaviour."""

    state: Any = None

    def __new__(cls, *arguments: Any) -> "Inert":
        """Remember the arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Remember the state."""
        self.state = state


def stand_in(name: str) -> type[Inert]:
    """A class of its own for a name, which the unpickler finds by it."""
    module, _, short = name.rpartition(".")
    return type(short, (Inert,), {"__module__": module, "__qualname__": short})


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, foreign objects as `Inert`. Raises FormatError that names what is not accepted."""
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise ValueError("it differs from its checksum")
        with torch.serialization.safe_globals([stand_in(name) for name in NAMES]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise FormatError(f"{path} is not a checkpoint that can be read safely: {reason(error)}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds {type(found).__name__}; expected a checkpoint with the key model")
    return found


def reason(error: Exception) -> str:
    """What is wrong with a file, in one line; torch's own text is advice to load it without this safety."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"it holds an object of {named[1]}, which is not accepted; save it again with plain numbers and lists"
    return "it is damaged, or holds something else than tensors, numbers, words and lists"


def plain(value: Any) -> Any:
    """A remembered object as dicts, lists and values: of a config what it holds."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        for name in ("_content", "_val"):  # OmegaConf's containers and leaves
            if name in state:
                return plain(state[name])
        return {str(key): plain(part) for key, part in state.items()}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
