"""Cases from disk to tensors: layouts, reading with checks, transforms, synthetic cases."""

from __future__ import annotations

from egcnn.data.case import Case, Dataset, read_image, read_label, write_volume
from egcnn.data.layouts import open_dataset, split

__all__ = ["Case", "Dataset", "open_dataset", "read_image", "read_label", "split", "write_volume"]
