"""Atomic file writes, and folders of one writer."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from egcnn.errors import InputError

_PART = ".part-"
_LOCK = ".lock"


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
        handle, name = tempfile.mkstemp(prefix=_PART, suffix="-" + path.name, dir=path.parent)
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder: no other process does meanwhile, and what a killed one left half-written goes.

    Args:
        folder: created if missing.

    Raises:
        InputError: another process owns the folder, or it cannot be written.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path) as file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            for pattern in (f"{_PART}????????-*", f"*/{_PART}????????-*"):
                for part in folder.glob(pattern):
                    part.unlink(missing_ok=True)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except OSError as error:
        if error.filename != str(path):
            raise
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _lock(path: Path) -> IO[str]:
    """Open a file that no other process has locked.

    The lock ends with the process, and its worker processes do not inherit it.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read(100)
            file.close()
            raise InputError(
                f"{path.parent}: in use by another run ({owner}); expected a folder of its own"
            ) from None
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            # The former owner may have deleted the file after it was opened here.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the contents of files, one after the other, as of ``cat FILES | sha256sum``.

    Raises:
        InputError: a file cannot be read.
    """
    contents = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    contents.update(block)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return contents.hexdigest()


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
