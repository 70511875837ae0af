"""Cases on disk: as in memory, keyed by content and settings, whole after any accident."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from egcnn.data import Dataset, cache, open_dataset
from egcnn.data.cache import MappedCases, cache_cases
from egcnn.data.hashes import data_digest
from egcnn.data.phantom import write_brats
from egcnn.data.transforms import PreprocessingSettings, ZScored, augmentation
from egcnn.errors import InputError
from egcnn.files import turn
from egcnn.regions import Regions

SETTINGS = PreprocessingSettings((8, 8, 8), (2.0, 2.0, 2.0))


@pytest.fixture
def brats(tmp_path: Path) -> Dataset:
    write_brats(tmp_path / "data", 3, shape=(16, 20, 18), seed=3)
    return open_dataset(tmp_path / "data")


def mapped(brats: Dataset, folder: Path, settings: PreprocessingSettings = SETTINGS) -> MappedCases:
    return MappedCases(folder, brats.cases, brats, settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_cases_are_those_in_memory(brats: Dataset, tmp_path: Path, workers: int) -> None:
    kept = cache_cases({"all": brats.cases}, brats, SETTINGS, room=1e9)["all"]
    found = MappedCases(tmp_path / "c", brats.cases, brats, SETTINGS, workers=workers)
    assert len(found) == 3
    for index in range(3):
        for key in ("image", "label"):
            assert type(found[index][key]) is torch.Tensor
            assert torch.equal(found[index][key], kept[index][key])
    files = sorted(path.name for path in (tmp_path / "c").iterdir() if path.suffix == ".pt")
    assert [name.rsplit("-", 1)[0] for name in files] == [case.name for case in brats.cases]


def test_a_case_in_memory_is_preprocessed_once(
    brats: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalised: list[None] = []
    normalise = ZScored.__call__

    def counted(self: ZScored, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        normalised.append(None)
        return normalise(self, data)

    monkeypatch.setattr(ZScored, "__call__", counted)
    kept = cache_cases({"all": brats.cases}, brats, SETTINGS, room=1e9)["all"]
    first = [kept[index]["image"].clone() for index in range(3) for _ in range(2)]
    assert len(normalised) == 3
    augment = augmentation(SETTINGS.patch)
    for index, image in enumerate(first):
        augment(kept[index // 2])
        assert torch.equal(kept[index // 2]["image"], image)
    assert len(normalised) == 3


def test_a_patch_is_read_without_the_volume(brats: Dataset, tmp_path: Path) -> None:
    item = mapped(brats, tmp_path / "c")[0]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(tmp_path / "c") in maps
    assert item["image"].shape == (4, 8, 10, 10)


def test_keyed_by_content_and_settings(brats: Dataset, tmp_path: Path) -> None:
    first = mapped(brats, tmp_path / "c").paths
    times = [path.stat().st_mtime_ns for path in first]
    # The patch is cut out later.
    again = mapped(brats, tmp_path / "c", replace(SETTINGS, patch=(16, 16, 16))).paths
    assert again == first
    assert [path.stat().st_mtime_ns for path in again] == times
    assert not set(first) & set(
        mapped(brats, tmp_path / "c", replace(SETTINGS, spacing=None)).paths
    )
    # The same name and size, other voxels.
    shutil.copy(brats.cases[1].images[0], brats.cases[0].images[0])
    changed = mapped(brats, tmp_path / "c").paths
    assert changed[0] != first[0]
    assert changed[1:] == first[1:]


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_file_cut_short_is_made_anew(brats: Dataset, tmp_path: Path, part: float) -> None:
    whole = mapped(brats, tmp_path / "c")
    path, image = whole.paths[0], whole[0]["image"].clone()
    for again in (lambda: whole, lambda: mapped(brats, tmp_path / "c")):
        with path.open("rb+") as file:
            file.truncate(int(path.stat().st_size * part))
        # While it is in use, and by the next run.
        assert torch.equal(again()[0]["image"], image)


def test_a_flipped_byte_is_noticed_by_the_next_run(brats: Dataset, tmp_path: Path) -> None:
    whole = mapped(brats, tmp_path / "c")
    path, image = whole.paths[0], whole[0]["image"].clone()
    data = bytearray(path.read_bytes())
    data[data.index(bytes(image.untyped_storage()[:64])) + 3] ^= 0x40
    path.write_bytes(data)
    assert torch.equal(mapped(brats, tmp_path / "c")[0]["image"], image)


@pytest.mark.parametrize("other", [[1], {"image": torch.ones(4, 2, 2, 2)}, {}])
def test_a_file_of_something_else_is_made_anew(
    brats: Dataset, tmp_path: Path, other: object
) -> None:
    whole = mapped(brats, tmp_path / "c")
    image = whole[0]["image"].clone()
    torch.save(other, whole.paths[0])
    assert torch.equal(mapped(brats, tmp_path / "c")[0]["image"], image)


def test_what_a_killed_process_left_is_removed(brats: Dataset, tmp_path: Path) -> None:
    path = mapped(brats, tmp_path / "c").paths[0]
    path.unlink()
    part = path.with_name(f".part-abcdefgh-{path.name}")
    other = path.with_name(".part-abcdefgh-another.pt")
    part.write_bytes(b"half")
    other.write_bytes(b"half")
    mapped(brats, tmp_path / "c")
    assert not part.exists()
    assert other.exists()


def _count_and_make(dataset: Dataset, folder: Path, made: Path) -> None:
    torch.set_num_threads(1)
    prepare = cache.MappedCases._make

    def counted(self: MappedCases, index: int) -> None:
        inner = self._prepare

        def announce(case: object) -> object:
            with made.open("a") as file:
                file.write(f"{os.getpid()} {index}\n")
            return inner(case)

        self._prepare = announce  # type: ignore[assignment]
        prepare(self, index)
        self._prepare = inner

    cache.MappedCases._make = counted  # type: ignore[method-assign]
    mapped(dataset, folder)


def test_two_processes_make_each_case_once(brats: Dataset, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    made = tmp_path / "made"
    both = [
        fork.Process(target=_count_and_make, args=(brats, tmp_path / "c", made)) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(line.split()[1] for line in made.read_text().splitlines()) == ["0", "1", "2"]


def _hold(path: Path, held: object, let_go: object) -> None:
    with turn(path):
        held.set()  # type: ignore[attr-defined]
        let_go.wait(30)  # type: ignore[attr-defined]


def test_other_files_are_not_waited_for(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    held, let_go = fork.Event(), fork.Event()
    process = fork.Process(target=_hold, args=(tmp_path / "a.pt", held, let_go))
    process.start()
    assert held.wait(30)
    with turn(tmp_path / "b.pt"):
        pass
    let_go.set()
    with turn(tmp_path / "a.pt"):
        pass
    process.join(30)
    assert process.exitcode == 0


def test_a_full_disk(brats: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        InputError, match=r"3 preprocessed cases take .* the 1e-06 GB that are free"
    ):
        mapped(brats, tmp_path / "c" / "d")
    monkeypatch.undo()
    # It fills while a case is written.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            InputError, match=r"c/.*\.pt: .*(room left on the disk|cannot be written)"
        ):
            mapped(brats, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".turns"]


def test_hashes_that_are_known_are_not_computed_again(
    brats: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mapped(brats, tmp_path / "c").paths
    hashes = data_digest(brats.cases)["cases"]
    monkeypatch.setattr(cache, "case_digest", lambda case: pytest.fail("hashed"))
    found = MappedCases(tmp_path / "c", brats.cases, brats, SETTINGS, hashes=hashes)
    assert found.paths == expected


def test_labels_of_two_bytes_are_counted(brats: Dataset) -> None:
    many = replace(brats, regions=Regions(("organ",), ((1, 300),), "sigmoid"))
    one, two = (cache._prepared_bytes(data.cases[0], data, SETTINGS) for data in (brats, many))
    assert two - one == 8 * 10 * 9


def test_a_folder_that_cannot_be(brats: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        mapped(brats, tmp_path / "file")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_case_is_named_at_the_start(brats: Dataset, tmp_path: Path, workers: int) -> None:
    bad = brats.cases[2].images[1]
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.raises(Exception, match=r"truncated") as caught:
        MappedCases(tmp_path / "c", brats.cases, brats, SETTINGS, workers=workers)
    assert bad.name in str(caught.value)
