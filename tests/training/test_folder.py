"""The folder of a run: damaged files, and what is restored from which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from egcnn import checkpoint
from egcnn.data import Dataset, open_dataset
from egcnn.data.phantom import write_brats
from egcnn.errors import InputError
from egcnn.files import owned
from egcnn.training import (
    BEST,
    CONFIG,
    HISTORY,
    LAST,
    TrainingConfig,
    fit,
    plan,
    read_config,
    read_history,
)
from egcnn.training.history import History
from egcnn.training.saving import Checkpoints

from ..tolerances import REORDERED

OLDER = "last-1.ckpt"


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("brats")
    write_brats(root, 3, shape=(16, 18, 17), seed=3)
    return open_dataset(root)


@pytest.fixture(scope="module")
def tiny(brats: Dataset) -> TrainingConfig:
    size = {"patch": (16, 16, 16), "filters": 2, "epochs": 3, "precision": "32-true", "edge": False}
    return plan(brats, torch.device("cpu")).change(size)


@pytest.fixture(scope="module")
def finished(
    brats: Dataset, tiny: TrainingConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    fit(tiny, brats, output, quiet=True)
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, tensor: torch.Tensor) -> None:
    """Flip one byte of a tensor in a checkpoint."""
    data = bytearray(path.read_bytes())
    place = data.index(bytes(tensor.untyped_storage()[:16]))
    data[place + 3] ^= 0x40
    path.write_bytes(data)


def a_weight(path: Path) -> torch.Tensor:
    weights = torch.load(path, weights_only=True)["state_dict"]
    return next(value for value in weights.values() if value.numel() > 16)


def test_a_flipped_byte_in_a_weight_is_noticed(run: Path) -> None:
    flip(run / BEST, a_weight(run / BEST))
    with pytest.raises(InputError, match=r"best.ckpt cannot be read .*\(the checksum of .* is wro"):
        checkpoint.load(run / BEST)


def test_the_last_checkpoints_are_kept(run: Path, finished: Path) -> None:
    epochs = [checkpoint.read(run / name)["epoch"] + 1 for name in (LAST, OLDER)]
    assert epochs == [3, 2]
    assert len(list(run.glob("last*"))) == 2
    data = checkpoint.read(finished / LAST)
    checkpoint.write(run / LAST, data, keep=4)
    assert (run / "last-1.ckpt").read_bytes() == (finished / LAST).read_bytes()
    assert (run / "last-2.ckpt").read_bytes() == (finished / OLDER).read_bytes()


def test_an_older_checkpoint_stays_until_the_new_one_reads(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def damaged(data: object, path: Path) -> None:
        save(data, path)
        flip(path, a_weight(finished / LAST))

    monkeypatch.setattr(torch, "save", damaged)
    with pytest.raises(InputError, match="did not reach the disk whole"):
        checkpoint.write(run / LAST, checkpoint.read(finished / LAST), keep=2)
    for name in (LAST, OLDER):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("how", ["empty", "flipped", "missing"])
def test_a_damaged_last_checkpoint(
    run: Path,
    finished: Path,
    brats: Dataset,
    tiny: TrainingConfig,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if how == "empty":
        (run / LAST).write_bytes(b"")
    elif how == "missing":
        (run / LAST).unlink()
    else:
        flip(run / LAST, a_weight(run / LAST))
    (run / BEST).unlink()
    fit(tiny, brats, run, existing="resume")
    said = capsys.readouterr().out
    assert str(run / LAST) in said
    assert f"resuming from {run / OLDER}, epoch 2" in said
    assert "epoch 3/3" in said
    one, other = (checkpoint.read(folder / LAST)["state_dict"] for folder in (run, finished))
    torch.testing.assert_close(dict(one), dict(other), rtol=REORDERED, atol=1e-6)
    assert checkpoint.read(run / OLDER)["epoch"] + 1 == 2
    assert [row["epoch"] for row in read_history(run)] == [1, 2, 3]


def test_no_checkpoint_reads(run: Path, brats: Dataset, tiny: TrainingConfig) -> None:
    for path in run.glob("*.ckpt"):
        path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"no checkpoint that can be resumed; .*last.ckpt"):
        fit(tiny, brats, run, existing="resume", quiet=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loops", {}),
        ("optimizer_states", [{"state": {}}]),
        ("lr_schedulers", [0.5]),
        ("state_dict", {"network.weight": torch.ones(3)}),
        ("pytorch-lightning_version", "[/x]"),
    ],
)
def test_a_state_that_does_not_fit(
    run: Path, brats: Dataset, tiny: TrainingConfig, key: str, value: object
) -> None:
    torch.save({**checkpoint.read(run / LAST), key: value}, run / "other.ckpt")
    (run / "other.ckpt").replace(run / LAST)
    with pytest.raises(InputError, match=r"checkpoint: .*last.ckpt cannot be resumed") as caught:
        fit(tiny, brats, run, existing="resume", quiet=True)
    assert "\n" not in str(caught.value)


def test_a_lost_process_is_no_damage(
    run: Path, brats: Dataset, tiny: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:4821")

    monkeypatch.setattr("egcnn.training.run._trainer", lost)
    with pytest.raises(RuntimeError, match="Connection closed by peer") as caught:
        fit(tiny, brats, run, existing="resume", quiet=True)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"config": 3}', "[" * 10**5],
    ids=["missing", "cut", "of other types", "deep"],
)
def test_a_damaged_config_is_restored(
    run: Path, finished: Path, brats: Dataset, tiny: TrainingConfig, content: str | None
) -> None:
    before = read_config(run)
    if content is None:
        (run / CONFIG).unlink()
    else:
        (run / CONFIG).write_text(content)
    assert read_config(run) == before
    if content is None:
        fit(tiny, brats, run, existing="resume", quiet=True)
        assert (run / CONFIG).read_text() == (finished / CONFIG).read_text()


def test_a_damaged_history_is_restored(
    run: Path, finished: Path, brats: Dataset, tiny: TrainingConfig
) -> None:
    whole = (finished / HISTORY).read_text()
    for content in (b"", b"\xff\xfe", whole[:-30].encode(), whole.encode() + b"4,x\n"):
        (run / HISTORY).write_bytes(content)
        if content:
            with pytest.raises(InputError, match=r"history.csv: cannot be read in row \d"):
                read_history(run)
    fit(tiny, brats, run, existing="resume", quiet=True)
    assert (run / HISTORY).read_text() == whole


def test_two_trainings_into_one_folder(run: Path, brats: Dataset, tiny: TrainingConfig) -> None:
    part = run / ".part-abcdefgh-last.ckpt"
    part.touch()
    code = (
        "import sys, pathlib; from egcnn.files import owned\n"
        "with owned(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    del before[part]
    with subprocess.Popen(
        [sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for existing in ("resume", "overwrite"):
            with pytest.raises(InputError, match=f"in use by another run .process {other.pid} on"):
                fit(tiny, brats, run, existing=existing, quiet=True)  # type: ignore[arg-type]
        assert {path: path.read_bytes() for path in before} == before
        other.kill()
    fit(tiny, brats, run, existing="resume", quiet=True)
    assert not list(run.glob(".*"))


def test_two_threads_of_a_process_into_one_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    for name in (run, tmp_path / "link"):
        with owned(run), ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda name=name: owned(name).__enter__())
            with pytest.raises(InputError, match=f"in use by another run .process {os.getpid()}"):
                other.result()
            # Another process still finds the lock.
            code = "import sys, pathlib, egcnn.files as f; f._lock(pathlib.Path(sys.argv[1]))"
            command = [sys.executable, "-c", code, run / ".lock"]
            assert b"in use by another run" in subprocess.run(command, capture_output=True).stderr
    with owned(run):
        pass


def made_best(path: Path, epoch: int) -> None:
    """Write a checkpoint anew, as if this epoch had been by far the best."""
    data = checkpoint.read(path)
    (state,) = (value for value in data["callbacks"].values() if "rows" in value)
    state["rows"][epoch - 1]["dice"] = 0.999
    checkpoint.write(path, data)


def test_the_best_epoch_after_a_move(
    run: Path, brats: Dataset, tiny: TrainingConfig, tmp_path: Path
) -> None:
    moved = run.rename(tmp_path / "moved")
    made_best(moved / OLDER, 2)
    before = (moved / OLDER).read_bytes()
    (moved / OLDER).replace(moved / LAST)
    (moved / BEST).write_bytes(before)
    fit(tiny, brats, moved, existing="resume", quiet=True)
    assert [row["dice"] == 0.999 for row in read_history(moved)] == [False, True, False]
    assert (moved / BEST).read_bytes() == before


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_deleted_best_checkpoint(
    run: Path,
    brats: Dataset,
    tiny: TrainingConfig,
    epoch: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run / BEST).unlink()
    made_best(run / LAST, epoch)
    best = fit(tiny, brats, run, existing="resume").best
    if epoch == 2:  # last-1.ckpt is of that epoch
        assert best is not None
        assert checkpoint.read(best)["epoch"] + 1 == 2
    else:
        assert best is None
        assert (
            "best.ckpt is missing, and no other checkpoint is of epoch 1" in capsys.readouterr().out
        )


def test_region_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"loss": 1.0, "dice": 0.5, "dice_[/x]": 0.5, "lr": 0.1, "seconds": 1.0, "epoch": 1.0}
    History(tmp_path, ["[/x]"], quiet=False)._print(numbers, 1)
    assert "[/x] 0.500" in capsys.readouterr().out


def test_no_best_is_missed_within_the_first_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path, (), quiet=False)
    trainer: Any = SimpleNamespace(ckpt_path=str(tmp_path / LAST), is_global_zero=True)
    Checkpoints(tmp_path, history, None).on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
    history.rows = [{"epoch": 1, "dice": 0.5}]
    Checkpoints(tmp_path, history, None).on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert "no other checkpoint is of epoch 1" in capsys.readouterr().out


def test_the_folder_is_checked_before_the_data_are_read(
    brats: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egcnn.training.run.data_digest", lambda cases: pytest.fail("hashed"))
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(InputError, match="was not written by a training run"):
        fit(plan(brats), brats, tmp_path, quiet=True)
