"""Arrays in safetensors files, opened by memory map with every field of the header checked."""

import math
import mmap
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from ehr_core.errors import FormatError

DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}
DTYPES |= {"U16": np.uint16, "U32": np.uint32, "I16": np.int16, "I8": np.int8, "F16": np.float16}
METADATA = "__metadata__"
MOST_HEADER = 100_000_000
"""Bytes of a header; the limit of the format."""
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Array(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[Natural]
    data_offsets: tuple[Natural, Natural]


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as views of a read-only memory map; nothing is read until it is used.

    Raises FormatError for a damaged or foreign file: among other things, arrays must fill the file from the header to
    its end without gap or overlap, each with as many bytes as its shape and type need.
    """
    return open_arrays(path)[0]


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, str]]:
    """As `map_arrays`, with the place of each in the file and the texts that the header keeps."""
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(buffer[:8], "little")
        if size > min(len(buffer) - 8, MOST_HEADER):
            raise ValueError("its header is longer than the file")
        header = msgspec.json.decode(buffer[8 : 8 + size], type=dict[str, msgspec.Raw])
        texts = msgspec.json.decode(header.pop(METADATA, b"{}"), type=dict[str, str])
        specs = {name: msgspec.json.decode(raw, type=_Array) for name, raw in header.items()}
        _check_places(specs, len(buffer) - 8 - size)
        starts = {name: 8 + size + spec.data_offsets[0] for name, spec in specs.items()}
        flat: dict[str, np.ndarray] = {
            name: np.frombuffer(buffer, DTYPES[spec.dtype], math.prod(spec.shape), starts[name])
            for name, spec in specs.items()
        }
        return {name: array.reshape(specs[name].shape) for name, array in flat.items()}, starts, texts
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError(f"{path} is damaged or no safetensors file: {str(error).splitlines()[0]}") from error


def _check_places(specs: dict[str, _Array], size: int) -> None:
    """Raise ValueError unless the arrays are laid end to end; a name that comes twice leaves a gap."""
    at = 0
    for name, spec in sorted(specs.items(), key=lambda item: item[1].data_offsets):
        if spec.dtype not in DTYPES:
            raise ValueError(f"{name!r} is of the unknown type {spec.dtype!r}")
        start, end = spec.data_offsets
        if start != at:
            raise ValueError(f"{name!r} begins at byte {start} of the data, and the one before ends at {at}")
        if end - start != math.prod(spec.shape) * np.dtype(DTYPES[spec.dtype]).itemsize:
            raise ValueError(f"{name!r} has {end - start} bytes, which is not what its shape needs")
        at = end
    if at != size:
        raise ValueError(f"there are {size} bytes of data, and its arrays have {at}")
