"""C++ that is compiled where it runs: once, with the g++ that mx.compile needs as well, and kept in a cache.

MLX is not imported here, since BLAS has to be loaded before it (backend.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlxlava.config import cache_folder


def build(name: str, source: str, options: Sequence[str] = (), of: str = "") -> Path:
    """A shared library of ``source``, built unless there is one already.

    Args:
        name: How its file begins.
        source: C++.
        options: For g++, behind those that every library needs.
        of: What else the result depends on, such as the processor.

    Raises:
        OSError: There is no g++, or no place to write to.
        subprocess.CalledProcessError: It does not compile.
    """
    library = built(name, source, options, of)
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}.tmp")
        command = ["g++", "-O3", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(draft), *options]
        subprocess.run(command, input=source, text=True, check=True, capture_output=True)
        draft.replace(library)
    return library


def built(name: str, source: str, options: Sequence[str] = (), of: str = "") -> Path:
    """Where :func:`build` puts its library."""
    key = hashlib.sha256("\0".join([source, *options, of]).encode()).hexdigest()[:16]
    return cache_folder() / f"{name}-{key}.so"


def load(library: Path) -> ctypes.CDLL:
    """The library, its symbols before those of libraries that are loaded later."""
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
