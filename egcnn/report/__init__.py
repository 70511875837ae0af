"""Tables for the terminal, and pictures."""

from egcnn.report.inspection import grid_table, inspection_title, label_table
from egcnn.report.pictures import View, write_picture
from egcnn.report.tables import edge_table, evaluation_table, lesion_table, training_table

__all__ = [
    "View",
    "edge_table",
    "evaluation_table",
    "grid_table",
    "inspection_title",
    "label_table",
    "lesion_table",
    "training_table",
    "write_picture",
]
