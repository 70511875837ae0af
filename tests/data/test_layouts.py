"""Detection of layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from egcnn.data import open_dataset
from egcnn.errors import InputError


def test_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no known dataset; looked for dataset\.json .*CASE_t1\..*case_00000"
    ):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file; expected the folder"):
        open_dataset(tmp_path / "file")
