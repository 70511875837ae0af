"""Backbones with and without the edge stream, over several seeds: the paper's Tables 1 and 2."""

from egcnn.comparison.arms import KINDS, Arm, Kind
from egcnn.comparison.differences import Comparison, Difference, Result
from egcnn.comparison.runs import compare
from egcnn.comparison.sizes import larger_filters, networks, parameters
from egcnn.comparison.tables import (
    EDGES_SHOWN,
    RECORD,
    as_table,
    difference_rows,
    edge_rows,
    markdown,
    read_comparison,
    rows,
    write_comparison,
)

__all__ = [
    "EDGES_SHOWN",
    "KINDS",
    "RECORD",
    "Arm",
    "Comparison",
    "Difference",
    "Kind",
    "Result",
    "as_table",
    "compare",
    "difference_rows",
    "edge_rows",
    "larger_filters",
    "markdown",
    "networks",
    "parameters",
    "read_comparison",
    "rows",
    "write_comparison",
]
