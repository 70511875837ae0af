"""Dataset layouts, checked reading, transforms and synthetic cases."""

from __future__ import annotations

from egcnn.data.brats import BRATS
from egcnn.data.case import Case, Dataset, read_image, read_label
from egcnn.data.inspection import CaseReport, inspect_cases
from egcnn.data.kits import KITS
from egcnn.data.layouts import LAYOUTS, find_dataset, open_dataset, read_cases
from egcnn.data.nifti import write_volume
from egcnn.data.splits import split

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
