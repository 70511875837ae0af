"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import typer

from egcnn.errors import InputError

SET = typer.Option(
    "--set",
    metavar="NAME=VALUE",
    help="Any entry of config.json by its dotted name, such as network.edge_stream.gate=voxel; "
    "parts may be left out where the rest names one entry (gate=voxel). Repeatable.",
)
DEVICE = typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")


def triple(option: str, text: str) -> tuple[int, int, int]:
    """Three positive integers separated by commas.

    Raises:
        InputError: the text is something else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or any(number <= 0 for number in numbers):
        raise InputError(f"{option}: {text!r}; expected three positive integers, such as 64,64,48")
    return numbers[0], numbers[1], numbers[2]


def choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Names separated by commas, each once.

    Raises:
        InputError: a name that is not known, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"{option}: {name!r} is unknown; expected some of {', '.join(known)}")
    if not names:
        raise InputError(f"{option}: none given; expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))
