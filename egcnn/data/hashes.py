"""Hashes of the contents of cases, which say what data a result comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from egcnn.data.case import Case
from egcnn.files import digest, file_size
from egcnn.machine import usable_cores


def case_digest(case: Case) -> str:
    """SHA-256 of a case's files: ``cat IMAGES LABEL | sha256sum``.

    Raises:
        InputError: a file cannot be read.
    """
    return digest(case.files)


def data_sizes(cases: Iterable[Case]) -> dict[str, int]:
    """The size in bytes of each case's files together, by name.

    Raises:
        InputError: a file cannot be read.
    """
    return {case.name: sum(map(file_size, case.files)) for case in cases}


def data_digest(cases: Iterable[Case]) -> dict[str, Any]:
    """The hash and size of each case, and a hash of all: of names and hashes, sorted by name.

    Reading the files takes no longer than the disk needs, and training reads them anyway.

    Raises:
        InputError: a file cannot be read.
    """
    cases = sorted(cases, key=lambda case: case.name)
    with ThreadPoolExecutor(usable_cores()) as pool:
        hashes = dict(zip([c.name for c in cases], pool.map(case_digest, cases), strict=True))
    lines = "".join(f"{value}  {name}\n" for name, value in hashes.items())
    total = hashlib.sha256(lines.encode()).hexdigest()
    return {"sha256": total, "cases": hashes, "sizes": data_sizes(cases)}
