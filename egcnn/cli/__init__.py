"""The ``egcnn`` command. Heavy libraries are imported only when a command runs."""

# Each module registers its commands, in the order of the help text.
from egcnn.cli import train, predict, report, export, data, info  # isort: skip
from egcnn.cli.root import app, main

__all__ = ["app", "data", "export", "info", "main", "predict", "report", "train"]
