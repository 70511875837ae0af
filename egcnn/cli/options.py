"""Options that several commands share, and parsers of their values."""

from __future__ import annotations

import typer

from egcnn.checks import PRECISIONS
from egcnn.errors import InputError

SET = typer.Option("--set", metavar="NAME=VALUE", help="Any entry of config.json; repeatable.")
EPOCHS = typer.Option(metavar="N", help="Passes over the cases (300; 30).")
FOLD = typer.Option(metavar="K", help="Hold out fold K of 5, or of splits_final.json.")
DEVICE = typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:NUMBER.")
PRECISION = typer.Option(metavar="NAME", help=f"{', '.join(PRECISIONS)} (by the device).")
CACHE = typer.Option(metavar="DIR", help="Preprocessed cases on disk (in memory).")
JSON = typer.Option("--json", help="Print JSON, and nothing else.")


def examples(*lines: str) -> str:
    """The end of a command's help text: lines that can be typed."""
    return "\n".join(["\b", "Examples:", *(f"  $ {line}" for line in lines)])


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
