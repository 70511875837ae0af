"""The ``egcnn`` command. Nothing heavy is imported before a command runs."""

# Each module adds its commands, in the order of the help.
from egcnn.cli import train, predict, others  # isort: skip
from egcnn.cli.root import app, main

__all__ = ["app", "main", "others", "predict", "train"]
