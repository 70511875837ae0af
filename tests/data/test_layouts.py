"""Detection of layouts, and the split into training and validation cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from egcnn.data import BRATS, Case, open_dataset, split
from egcnn.data.case import Dataset
from egcnn.errors import InputError


def dataset(*names: str) -> Dataset:
    cases = tuple(Case(name, (Path(name),), Path(name)) for name in names)
    return Dataset("brats", Path("root"), cases, ("t1",), BRATS)


def many(count: int) -> Dataset:
    return dataset(*(f"case_{i:05d}" for i in range(count)))


def test_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no known dataset; looked for dataset\.json .*CASE_t1\."):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file; expected the folder"):
        open_dataset(tmp_path / "file")


def test_every_case_is_on_one_side_and_the_share_is_met() -> None:
    whole = many(2000)
    training, validation = split(whole, 0.2)
    assert sorted(c.name for c in training + validation) == [c.name for c in whole.cases]
    assert len(validation) / 2000 == pytest.approx(0.2, abs=0.03)


def test_cases_keep_their_side_when_others_come() -> None:
    few, more = many(50), many(100)
    shuffled = replace(more, cases=more.cases[::-1])
    held_out = set(split(few)[1])
    assert held_out == set(split(shuffled)[1]) & set(few.cases)


def test_a_larger_share_contains_the_smaller() -> None:
    assert set(split(many(100), 0.2)[1]) < set(split(many(100), 0.5)[1])


def test_the_seed_decides() -> None:
    whole = many(100)
    assert split(whole, seed=3) == split(whole, seed=3)
    assert split(whole, seed=3) != split(whole, seed=4)


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.999])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_side_is_empty(fraction: float, count: int) -> None:
    for seed in range(20):
        training, validation = split(many(count), fraction, seed)
        assert training
        assert validation
        assert len(training) + len(validation) == count


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_one_case_is_for_training(fraction: float) -> None:
    whole = many(1)
    assert split(whole, fraction) == (whole.cases, ())


def test_unlabelled_cases_are_left_out() -> None:
    whole = many(10)
    unlabelled = replace(whole, cases=(*whole.cases, Case("x", (Path("x"),))))
    assert split(unlabelled) == split(whole)
    with pytest.raises(InputError, match="none of 1 cases has a label"):
        split(replace(whole, cases=(Case("x", (Path("x"),)),)))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(InputError, match=r"fraction: .*between 0 and 1"):
        split(many(3), fraction)
