"""The header of a safetensors file, checked before MLX reads the arrays.

MLX adds offsets up without looking whether the sums fit into 64 bits. With such offsets an array would be
filled with bytes from elsewhere in the file, or from beyond its end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlxlava.schema import MAX_JSON_BYTES, Mismatch, integer, items, parse_json, row, show, table, text

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F16", "BF16", "U16", "I16"), 2),
    **dict.fromkeys(("F32", "U32", "I32"), 4),
    **dict.fromkeys(("F64", "U64", "I64", "C64"), 8),
}
_LENGTH_BYTES = 8  # at the beginning: the length of the header, little-endian
_MOST_ARRAYS = 10_000
_MOST_NAME_CHARACTERS = 300
_OFFSET = integer(0, 2**53)
_ARRAY = table(
    {"dtype": text(10), "shape": items(integer(0, 2**31 - 1), 8), "data_offsets": row(_OFFSET, _OFFSET)}
)


def check_header(path: Path) -> None:
    """Check that the arrays of a file lie one behind the other in it, and fill it.

    Raises:
        OSError: it cannot be read.
        Mismatch: it is no safetensors file, or its header does not describe what is in it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(MAX_JSON_BYTES, size - _LENGTH_BYTES):
            raise Mismatch("its header is longer than the file, or than what is read")
        header = table()(parse_json(file.read(length)), "the header")
    header.pop("__metadata__", None)
    if len(header) > _MOST_ARRAYS:
        raise Mismatch(f"it has {len(header)} arrays; at most {_MOST_ARRAYS} are read")
    end = 0
    for name, about in sorted(header.items(), key=lambda item: _first_offset(item[1])):
        end = _end_of_array(name, about, end)
    if end != size - _LENGTH_BYTES - length:
        raise Mismatch(
            f"its arrays have {end} bytes, and the file has {size - _LENGTH_BYTES - length} for them"
        )


def _first_offset(about: Any) -> tuple[int, int]:
    """Offsets of an array, to sort by. Wrong ones are found later."""
    offsets = about.get("data_offsets") if isinstance(about, dict) else None
    is_right = isinstance(offsets, list) and len(offsets) == 2 and all(type(each) is int for each in offsets)
    return (offsets[0], offsets[1]) if is_right and offsets else (0, 0)


def _end_of_array(name: str, about: Any, start: int) -> int:
    """Where an array ends that must begin at ``start``."""
    if len(name) > _MOST_NAME_CHARACTERS:
        raise Mismatch(
            f"the name of an array has {len(name)} characters; at most {_MOST_NAME_CHARACTERS} are read"
        )
    found = _ARRAY(about, f"array {show(name)}")
    if found["dtype"] not in _BYTES:
        raise Mismatch(f"array {show(name)} is of the type {show(found['dtype'])}, which is not read")
    first, end = found["data_offsets"]
    if first != start or end - first != _BYTES[found["dtype"]] * math.prod(found["shape"]):
        raise Mismatch(f"array {show(name)} does not lie where its shape and those before it say")
    return int(end)
