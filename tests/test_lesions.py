"""Lesion-wise scores by hand, where panoptica is installed."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest

from egcnn.errors import InputError
from egcnn.lesions import lesion_scores
from egcnn.metrics import LESION_METRICS

EMPTY = np.zeros((8, 8, 8), np.uint8)


def test_lesions_by_hand() -> None:
    pytest.importorskip("panoptica")
    truth = np.zeros((40, 40, 40), np.uint8)
    predicted = truth.copy()
    # Half of a lesion, whose Dice is 2/3.
    truth[2:10, 2:10, 2:10] = predicted[2:10, 2:10, 2:6] = 1
    # Two parts of one, five of its six planes: 10/11.
    truth[2:6, 30:36, 2:6] = predicted[2:6, 30:33, 2:6] = predicted[2:6, 34:36, 2:6] = 1
    # One missed, one that is none.
    truth[20:24, 20:24, 20:24] = predicted[30:33, 30:33, 30:33] = 1
    assert lesion_scores(predicted, truth) == pytest.approx(
        {
            "lesion_dice": (2 / 3 + 10 / 11) / 4,
            "lesion_f1": 2 * 2 / (2 * 2 + 1 + 1),
            "lesions_missed": 1,
            "lesions_false": 1,
        }
    )


def test_without_lesions() -> None:
    pytest.importorskip("panoptica")
    one = EMPTY.copy()
    one[3:5] = 1
    assert list(lesion_scores(EMPTY, EMPTY).values()) == [1, 1, 0, 0]
    assert list(lesion_scores(EMPTY, one).values()) == [0, 0, 1, 0]
    assert list(lesion_scores(one, EMPTY).values()) == [0, 0, 0, 1]
    assert list(lesion_scores(one, one).values()) == [1, 1, 0, 0]


def test_all_are_listed() -> None:
    pytest.importorskip("panoptica")
    assert tuple(lesion_scores(EMPTY, EMPTY)) == LESION_METRICS
    assert not any(math.isnan(value) for value in lesion_scores(EMPTY, EMPTY).values())


def test_panoptica_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("panoptica"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"lesions: panoptica is not installed; expected pip"):
        lesion_scores(EMPTY, EMPTY)
