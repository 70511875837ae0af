"""The split into training and validation cases: by a share, in five folds, by nnU-Net's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from egcnn.data import BRATS, Case, split
from egcnn.data.case import Dataset
from egcnn.data.splits import FOLD_FILE
from egcnn.errors import InputError


def dataset(*names: str, root: Path = Path("root")) -> Dataset:
    cases = tuple(Case(name, (Path(name),), Path(name)) for name in names)
    return Dataset("brats", root, cases, ("t1",), BRATS)


def many(count: int, root: Path = Path("root")) -> Dataset:
    return dataset(*(f"case_{i:05d}" for i in range(count)), root=root)


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


@pytest.mark.parametrize("count", [5, 23, 210])
def test_five_folds_hold_out_every_case_once(count: int) -> None:
    whole = many(count)
    folds = [split(whole, fold=fold) for fold in range(5)]
    assert sorted(case.name for _, held_out in folds for case in held_out) == [
        case.name for case in whole.cases
    ]
    sizes = [len(held_out) for _, held_out in folds]
    assert max(sizes) - min(sizes) <= 1
    for training, held_out in folds:
        assert sorted(c.name for c in training + held_out) == [c.name for c in whole.cases]


def test_folds_depend_on_names_and_seed_alone() -> None:
    whole = many(50)
    shuffled = replace(whole, cases=whole.cases[::-1])
    assert set(split(whole, fold=2)[1]) == set(split(shuffled, fold=2)[1])
    assert split(whole, fold=2) != split(whole, seed=1, fold=2)
    # Written down once, so that no version changes them unnoticed.
    assert [case.name[-2:] for case in split(many(12), fold=0)[1]] == ["00", "07", "10"]


@pytest.mark.parametrize("fold", [-1, 5])
def test_there_are_five_folds(fold: int) -> None:
    with pytest.raises(InputError, match=f"fold: {fold}; expected 0 to 4"):
        split(many(9), fold=fold)
    with pytest.raises(InputError, match="fold: 4 labelled cases; expected at least 5"):
        split(many(4), fold=0)


def test_the_datasets_own_folds(tmp_path: Path) -> None:
    whole = many(6, tmp_path)
    names = [case.name for case in whole.cases]
    folds = [{"train": names[:3], "val": names[3:5]}, {"train": names[4:], "val": names[:1]}]
    (tmp_path / FOLD_FILE).write_text(json.dumps(folds))
    assert split(whole, fold=0) == (whole.cases[:3], whole.cases[3:5])
    assert split(whole, fold=1) == (whole.cases[4:], whole.cases[:1])
    assert split(whole) == split(many(6))
    with pytest.raises(InputError, match=r"fold: 2; expected one of the 2 in .*splits_final"):
        split(whole, fold=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "no list of folds"),
        ("3", "no list of folds"),
        ("[3]", "no list of folds"),
        ('[{"train": []}]', "no list of folds"),
        ('[{"train": [], "val": "case_00000"}]', "no list of folds"),
        ('[{"train": ["case_00000"], "val": ["\\ud800"]}]', "no list of folds"),
        ('[{"train": ["case_00000"], "val": []}]', "fold 0 has no case as 'val'; expected at"),
        ('[{"train": ["case_00001"], "val": ["y", "z"]}]', "lists y and 1 more; expected labelled"),
        (
            '[{"train": ["case_00001"], "val": ["case_00001"]}]',
            "fold 0 lists case_00001 as 'train' and as 'val'",
        ),
    ],
)
def test_bad_folds_of_a_dataset(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FOLD_FILE).write_text(text)
    with pytest.raises(InputError, match=f"{FOLD_FILE}: {message}") as caught:
        split(many(6, tmp_path), fold=0)
    assert "\n" not in str(caught.value)
