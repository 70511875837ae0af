"""Options that several commands share, and parsers of their values."""

from __future__ import annotations

import typer

from egcnn.checks import PRECISIONS
from egcnn.errors import InputError

SET = typer.Option(
    "--set",
    metavar="NAME=VALUE",
    help="Any entry of config.json by its dotted name, such as network.edge_stream.gate=voxel; "
    "parts may be omitted if the rest is unambiguous (gate=voxel). Repeatable.",
)
PRECISION = typer.Option(help=f"{', '.join(PRECISIONS)}; by default chosen for the device.")
FOLD = typer.Option(
    help="Hold out this fold, from 0: of the dataset's splits_final.json, or of five by the cases' "
    "names and split_seed. By default a fifth of the cases is held out."
)
CACHE = typer.Option(
    help="Folder of preprocessed cases on a fast disk, which runs may share; without it they are "
    "kept in memory as far as they fit."
)
DEVICE = typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")


def triple(option: str, text: str) -> tuple[int, int, int]:
    """Parse three positive integers separated by commas.

    Raises:
        InputError: the text is not three positive integers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or any(number <= 0 for number in numbers):
        raise InputError(f"{option}: {text!r}; expected three positive integers, such as 64,64,48")
    return numbers[0], numbers[1], numbers[2]


def choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Parse names separated by commas; duplicates count once.

    Raises:
        InputError: an unknown name, or no name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"{option}: {name!r} is unknown; expected some of {', '.join(known)}")
    if not names:
        raise InputError(f"{option}: none given; expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))
