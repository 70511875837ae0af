from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from egcnn.errors import InputError
from egcnn.files import atomic_write, owned, write_csv, write_json, write_text


def test_a_text_replaces_another_with_the_users_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwölf\n")
    assert path.read_text(encoding="utf-8") == "zwölf\n"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert os.listdir(path.parent) == ["a.txt"]


def test_rows_by_column(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    write_csv(path, ["b", "a"], ({"a": a, "b": "x, y"} for a in (1, "")))
    assert path.read_bytes() == b'b,a\n"x, y",1\n"x, y",\n'
    with pytest.raises(ValueError, match="c"):
        write_csv(path, ["a"], [{"c": 1}])
    assert path.read_bytes() == b'b,a\n"x, y",1\n"x, y",\n'


def test_until_the_end_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), InputError),
        (ValueError("a defect"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_of_a_failure(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    path = tmp_path / "a.json"

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(raised) as caught:
        fail()
    assert not list(tmp_path.iterdir())
    if raised is InputError:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.txt: cannot be written: "):
        write_text(tmp_path / "file" / "a.txt", "text")


HOLD = (
    "import sys, pathlib; from egcnn.files import owned\n"
    "with owned(pathlib.Path(sys.argv[1])): print('owned', flush=True); sys.stdin.read()"
)


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "owned\n"
        says = rf"in use by another run \(process {holder.pid} on "
        with pytest.raises(InputError, match=says), owned(folder):
            pass
        holder.kill()
    # What a killed process left.
    left = [folder / ".part-abcdefgh-a.csv", folder / "predictions" / ".part-abcdefgh-a.nii.gz"]
    kept = folder / ".partial"
    left[1].parent.mkdir()
    for path in (*left, kept):
        path.touch()
    with owned(folder):
        assert not any(path.exists() for path in left)
    assert sorted(os.listdir(folder)) == [kept.name, "predictions"]


def test_json_has_null_where_a_number_is_unknown(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1.5, math.nan], "y": {"z": math.nan}, "t": (1, "nan")})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"x": [1.5, None], "y": {"z": None}, "t": [1, "nan"]}
