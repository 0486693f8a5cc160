"""Checksums of a Parquet file, verified for whichever library reads the file afterwards.

Polars reads events two to three times as fast as Arrow, and does not look at checksums; and a damaged footer can end
either library, and Python with it. So the footer and the headers of pages, which are Thrift's compact protocol, are
walked here first. A page header says how long its page is and, where the writer wrote it, its CRC-32. What we write
(`ehr_core.formats.parquet`) has one for every page, and a seal before the footer, in a place that no other reader looks
at: eight letters, the CRC-32 of the footer, and that of all before the seal, headers of pages included. Files of other
writers may have neither.
"""

import functools
import mmap
import zlib
from pathlib import Path
from typing import Any

from ehr_core.errors import FormatError

MAGIC, SEAL = b"PAR1", b"EHRCRC32"
SEAL_SIZE = 16
TAIL = 8
"""Bytes behind the footer: its length, and the magic."""
STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)
"""Types of Thrift's compact protocol; Parquet uses no map."""
DEEPEST = 16
"""Structs and lists within each other; Parquet has eight."""


def checked(path: Path, pages: bool = True) -> Path:
    """The path of a Parquet file, once it is what its checksums say; looked at again when it changes.

    Without ``pages`` only the footer is looked at, for who wants to know the columns. Raises FormatError that names the
    file.
    """
    try:
        state = path.stat()
        _check(path, pages, state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
        words = str(error) if type(error) in (OSError, ValueError) else "it is not in order"
        raise FormatError(f"{path} is not a readable Parquet file: {words}; make it anew, or copy it again") from None
    return path


@functools.lru_cache(maxsize=65_536)
def _check(path: Path, pages: bool, size: int, changed: int) -> None:
    if size < len(MAGIC) + TAIL:
        raise ValueError("it is too short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, footer, body = _footer(content)
        found, _ = _struct(footer, 0, DEEPEST)
        for element in found[2]:
            element[4].decode()  # a name that is no text ends other readers
        with memoryview(content) as data:
            if pages and body is not None:
                if zlib.crc32(data[: start - SEAL_SIZE]) != body:
                    raise ValueError("its content differs from its checksum")
            elif pages:
                for column in (column for group in found.get(4, []) for column in group[1]):
                    _walk(data, column[3], start)


def _footer(content: Any) -> tuple[int, bytes, int | None]:
    """Where the footer starts, its bytes, which are what their seal says, and the checksum of all before the seal.

    A file without a seal has no such checksum.
    """
    end = len(content) - TAIL
    start = end - int.from_bytes(content[end : end + 4], "little")
    if content[:4] != MAGIC or content[-4:] != MAGIC or start < len(MAGIC):
        raise ValueError("it does not begin and end as one")
    footer = content[start:end]
    seal = content[start - SEAL_SIZE : start] if start >= SEAL_SIZE else b""
    if seal[:8] != SEAL:
        return start, footer, None
    if zlib.crc32(footer) != int.from_bytes(seal[8:12], "little"):
        raise ValueError("its footer differs from its checksum")
    return start, footer, int.from_bytes(seal[12:], "little")


def seal(path: Path) -> None:
    """Put the checksums of footer and body between the two, in a file that is just being written."""
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, footer, _ = _footer(content)
        with memoryview(content) as data:
            body = zlib.crc32(data[:start])
        tail = content[-TAIL:]
        file.seek(start)
        file.write(SEAL + zlib.crc32(footer).to_bytes(4, "little") + body.to_bytes(4, "little") + footer + tail)


def _walk(data: memoryview, column: dict[int, Any], most: int) -> None:
    """The pages of one column of one row group."""
    name = b".".join(column[3]).decode()
    places = [place for place in (column.get(11), column[9]) if place]  # of the dictionary, and of the data
    at = min(places, default=len(MAGIC))
    end = at + column[7]
    values = 0
    if not len(MAGIC) <= at <= end <= most:
        raise ValueError("its footer points outside of it")
    while at < end:
        header, at = _struct(data, at, DEEPEST)
        stop = at + header[3]
        if not at <= stop <= end:
            raise ValueError(f"a page of column {name!r} is not as long as it says")
        if 4 in header and zlib.crc32(data[at:stop]) != header[4] & 0xFFFFFFFF:
            raise ValueError(f"a page of column {name!r} differs from its checksum")
        values += (header.get(5) or header.get(8) or {1: 0})[1]
        at = stop
    if values != column[5]:
        raise ValueError(f"column {name!r} has pages of {values} values in the place of {column[5]}")


# -- Thrift's compact protocol


def _struct(data: Any, at: int, deep: int) -> tuple[dict[int, Any], int]:
    """Values by field, and where the struct ends."""
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        found[field], at = _value(data, at, head & 15, deep)
    return found, at + 1


def _value(data: Any, at: int, kind: int, deep: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        return _integer(data, at)
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind in (BYTE, DOUBLE):
        return None, at + (1 if kind == BYTE else 8)
    if kind == BINARY:
        length, at = _varint(data, at)
        return bytes(data[at : at + length]), at + length
    if kind in (LIST, SET) and deep:
        return _list(data, at, deep - 1)
    if kind == STRUCT and deep:
        return _struct(data, at, deep - 1)
    raise ValueError("it has a header of another format")


def _list(data: Any, at: int, deep: int) -> tuple[list[Any], int]:
    head = data[at]
    count, at = (head >> 4, at + 1) if head >> 4 < 15 else _varint(data, at + 1)
    found = []
    for _ in range(count):
        if head & 15 in (TRUE, FALSE):  # within a list each takes a byte
            value, at = None, at + 1
        else:
            value, at = _value(data, at, head & 15, deep)
        if at > len(data):
            raise ValueError("it ends early")
        found.append(value)
    return found, at


def _integer(data: Any, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: Any, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[at]) & 128:
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise ValueError("it has a number without an end")
    return number | byte << shift, at + 1
