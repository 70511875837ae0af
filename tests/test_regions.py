"""Regions of label maps: values that the labels' type cannot hold, limits, ignored voxels."""

from __future__ import annotations

import pytest
import torch

from egcnn.errors import InputError
from egcnn.ops import reference
from egcnn.regions import Regions

HIGH = Regions(("background", "organ"), ((0,), (256,)), "softmax")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_a_value_that_the_labels_type_cannot_hold_is_nowhere(dtype: torch.dtype) -> None:
    labels = torch.arange(4).view(1, 1, 1, 2, 2).to(dtype)
    assert torch.equal(HIGH.masks(labels)[:, 1], torch.zeros(1, 1, 2, 2).byte())
    assert torch.equal(HIGH.classes(labels), torch.zeros_like(labels).long())
    nested = Regions(("all", "high"), ((0, 1, 2, 3, 256), (256, 300)), "sigmoid")
    assert nested.masks(labels).sum((0, 2, 3, 4)).tolist() == [4, 0]
    assert reference.sobel_edges(labels, [(256,), (-256, 512)]).eq(0).all()


def test_a_value_that_it_can_hold_is_found() -> None:
    labels = torch.tensor([0, 256]).view(1, 1, 1, 1, 2)
    assert HIGH.classes(labels).flatten().tolist() == [0, 1]
    assert HIGH.masks(labels.to(torch.int16))[0, 1].flatten().tolist() == [0, 1]


@pytest.mark.parametrize("value", [-1, 32768, 2**70])
def test_values_that_label_maps_cannot_hold_are_refused(value: int) -> None:
    with pytest.raises(InputError, match=f"'b' has the label value {value}; expected values from"):
        Regions(("a", "b"), ((0,), (value,)), "softmax")


IGNORING = Regions(("background", "a"), ((0,), (1,)), "softmax", ignore_index=3)


def test_ignored_voxels_are_in_no_region_and_allowed() -> None:
    labels = torch.tensor([0, 1, 3]).view(1, 1, 1, 1, 3)
    assert IGNORING.values == (0, 1, 3)
    assert IGNORING.masks(labels).sum(1).flatten().tolist() == [1, 1, 0]
    ignored = IGNORING.ignored(labels)
    assert ignored is not None
    assert ignored.flatten().tolist() == [False, False, True]
    assert Regions.from_dict(IGNORING.to_dict()) == IGNORING
    assert HIGH.ignored(labels) is None
    old = {key: value for key, value in HIGH.to_dict().items() if key != "ignore_index"}
    assert Regions.from_dict(old) == HIGH


def test_a_label_of_a_region_cannot_be_ignored() -> None:
    with pytest.raises(InputError, match="ignore_index is 1, a label value of a region"):
        Regions(("a", "b"), ((0,), (1,)), "softmax", ignore_index=1)
