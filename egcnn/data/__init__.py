"""Dataset layouts, checked reading, transforms and synthetic cases."""

from __future__ import annotations

from egcnn.data.case import Case, Dataset, read_image, read_label
from egcnn.data.inspection import CaseReport, inspect_cases
from egcnn.data.layouts import LAYOUTS, find_dataset, open_dataset, read_cases
from egcnn.data.nifti import write_volume
from egcnn.data.splits import split
from egcnn.regions import BRATS, KITS

__all__ = [
    "BRATS",
    "KITS",
    "LAYOUTS",
    "Case",
    "CaseReport",
    "Dataset",
    "find_dataset",
    "inspect_cases",
    "open_dataset",
    "read_cases",
    "read_image",
    "read_label",
    "split",
    "write_volume",
]
