"""Atomic file writes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egcnn.errors import InputError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file next to ``path`` that replaces it when the block succeeds.

    The content is flushed to disk before the rename. If the block raises (a full disk, Ctrl-C), the
    temporary file is deleted and ``path`` stays as it was; a killed process leaves a ``.part``
    file. The temporary name has the suffix of ``path``, from which many writers choose the format.

    Raises:
        InputError: ``path`` cannot be written, for example because the disk is full.
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
        # mkstemp makes private files; give the result the user's usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text through :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows by column name as CSV through :func:`atomic_write`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: str | Path, data: Any) -> None:
    """Write plain data as JSON through :func:`atomic_write`; NaN becomes null."""
    write_text(path, json.dumps(without_nan(data), indent=1) + "\n")


def without_nan(data: Any, missing: str | None = None) -> Any:
    """A copy of nested plain data with NaN replaced by ``missing``."""
    if isinstance(data, Mapping):
        return {key: without_nan(value, missing) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_nan(value, missing) for value in data]
    return missing if isinstance(data, float) and math.isnan(data) else data
