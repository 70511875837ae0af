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
import re
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from egcnn.errors import InputError, brief

_PART = ".part-"
_LOCK = ".lock"
# Device and inode of the folders that a thread of this process owns.
_owned: set[tuple[int, int]] = set()
_guard = threading.Lock()
_TURNS = ".turns"


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
    """Own a folder: nobody else does meanwhile, and what a killed process left half-written goes.

    Args:
        folder: created if missing.

    Raises:
        InputError: another process or thread owns the folder, or it cannot be written.
    """
    path = folder / _LOCK
    owner = f"process {os.getpid()} on {platform.node()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _no_other_thread(folder, owner), _lock(path) as file:
            file.truncate(0)
            file.write(owner)
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


@contextmanager
def _no_other_thread(folder: Path, owner: str) -> Iterator[None]:
    """Keep the threads of this process apart: a lock of the file is the process's.

    Opening the file a second time would release the lock as it is closed.
    """
    state = folder.stat()
    key = (state.st_dev, state.st_ino)
    with _guard:
        if key in _owned:
            raise _in_use(folder, owner)
        _owned.add(key)
    try:
        yield
    finally:
        with _guard:
            _owned.discard(key)


def _in_use(folder: Path, owner: str) -> InputError:
    return InputError(f"{folder}: in use by another run ({owner}); expected a folder of its own")


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
            raise _in_use(path.parent, owner) from None
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            # The former owner may have deleted the file after it was opened here.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Make a file while no other process makes the same; those that want to wait here.

    What a killed process left half-written of it is removed.

    Args:
        path: its folder is created if missing.

    Raises:
        InputError: the folder cannot be written.
    """
    lock = path.parent / _TURNS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise InputError(f"{lock}: cannot be written: {error.strerror or error}") from error
    with file:
        # Every name locks a byte of its own, of a file that is never written.
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX, 1, zlib.crc32(path.name.encode()))
            for part in path.parent.glob(f"{_PART}????????-{path.name}"):
                part.unlink(missing_ok=True)
        yield


def save_tensors(data: Mapping[str, Any], path: Path, target: Path) -> None:
    """Write by ``torch.save``.

    Args:
        data: tensors and plain data.
        path: the file, usually of :func:`atomic_write`.
        target: the file that messages name.

    Raises:
        InputError: writing failed half-way.
    """
    import torch

    try:
        torch.save(dict(data), path)
    except RuntimeError as error:
        # torch's writer reports a failed write this way, and a killed worker is reported here if
        # it dies meanwhile.
        if not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        raise InputError(
            f"{target}: writing stopped half-way; is there room left on the disk?"
        ) from error


def tensor_damage(path: Path) -> str | None:
    """What is wrong with a file of :func:`save_tensors` by its checksums, which torch ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Neither of torch's files is compressed, or could grow beyond its size on the disk.
            size = sum(entry.file_size for entry in entries)
            if any(entry.compress_type for entry in entries) or size > path.stat().st_size:
                return "not a file that torch wrote"
            bad = archive.testzip()
    except Exception:  # of many types, depending on the damage
        return "truncated, or not a file that torch wrote"
    return None if bad is None else f"the checksum of {bad} is wrong"


def file_size(path: str | Path) -> int:
    """Size of a file in bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes through :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


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


def read_json(path: Path) -> Any:
    """Read plain data.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a JSON file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({brief(error)}); expected JSON text"
        ) from error


def without_nan(data: Any, missing: str | None = None) -> Any:
    """A copy of nested plain data with NaN replaced by ``missing``."""
    if isinstance(data, Mapping):
        return {key: without_nan(value, missing) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_nan(value, missing) for value in data]
    return missing if isinstance(data, float) and math.isnan(data) else data
