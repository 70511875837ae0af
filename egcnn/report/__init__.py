"""Tables for the terminal, pictures, and the page of a report."""

from egcnn.report.inspection import grid_table, inspection_title, label_table
from egcnn.report.page import REPORT, try_report, write_report
from egcnn.report.pictures import View, write_picture
from egcnn.report.tables import edge_table, evaluation_table, lesion_table, training_table

__all__ = [
    "REPORT",
    "View",
    "edge_table",
    "evaluation_table",
    "grid_table",
    "inspection_title",
    "label_table",
    "lesion_table",
    "training_table",
    "try_report",
    "write_picture",
    "write_report",
]
