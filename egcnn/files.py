"""Writing files so that a final name never holds half a file."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egcnn.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its name when the block ends well.

    The content is on disk before the name changes. When the block raises (a full disk, Ctrl-C) the
    temporary file goes and whatever ``path`` held before stays; a kill leaves a ``.part`` file.
    The temporary name ends as ``path`` does, since many writers choose their format by it.

    Raises:
        InputError: ``path`` cannot be written, the disk is full for example.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix="-" + path.name, dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; a result is as readable as anything else the user writes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text through :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write plain data as JSON, by :func:`write_text`; NaN, which JSON does not know, as null."""
    write_text(path, json.dumps(without_nan(data), indent=1) + "\n")


def without_nan(data: Any, missing: str | None = None) -> Any:
    """The same mappings, lists and values with ``missing`` in place of NaN."""
    if isinstance(data, Mapping):
        return {key: without_nan(value, missing) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_nan(value, missing) for value in data]
    return missing if isinstance(data, float) and math.isnan(data) else data
