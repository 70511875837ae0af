"""The Typer application: global options and error reporting."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Annotated

import typer

import egcnn
from egcnn.cli.options import examples
from egcnn.errors import brief, causes, input_error, lost_peer
from egcnn.machine import prepare_cpu
from egcnn.terminal import tolerate, visible

app = typer.Typer(
    name="egcnn",
    help="Edge-Gated CNNs for volumetric semantic segmentation of medical images.",
    epilog=examples(
        "egcnn demo",
        "egcnn train DATA -o run",
        "egcnn predict run/last.ckpt DATA -o predictions --split validation --edges",
        "egcnn evaluate predictions DATA",
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; bad input is one line on stderr and exit code 1."""
    prepare_cpu()
    tolerate(sys.stdout)
    try:
        app(args=arguments)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        tolerate(sys.stderr)
        print(f"error: {visible(message)}", file=sys.stderr)
        sys.exit(1)


def _message(error: BaseException | None) -> str | None:
    """The one-line message for an error; ``None`` if it needs a traceback."""
    if (wrong := input_error(error)) is not None:
        return _from_worker(str(wrong)) or str(wrong)
    for link in causes(error):
        if (message := _about_memory(link)) is not None:
            return message
    if error is None:
        return None
    if (lost := lost_peer(error)) is not None:
        return (
            "another process of this training ended, or does not answer "
            f"({brief(str(lost).splitlines()[0])}); what that process printed says why"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return _from_worker(str(error))


def _about_memory(error: BaseException) -> str | None:
    """The message for an error that says that memory ran out."""
    smaller = "try a smaller --patch, --batch-size or --filters"
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU is out of memory; {smaller}"
    if re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", text):
        return (
            f"a worker process was killed ({text.splitlines()[0].rstrip('. ')}), which the system "
            "does when memory runs out; try --set workers=0 (evaluate: --workers 0)"
        )
    out = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if out or isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return f"memory ran out; {smaller}"
    return None


def _from_worker(text: str) -> str | None:
    # Errors from a worker process arrive as a traceback in text; in an InputError, whose message is
    # one line, in a text that the error itself ends.
    messages = re.findall(r"^egcnn\.errors\.InputError: (.*)$", text, re.MULTILINE)
    if not messages and re.match("Caught InputError in DataLoader worker", text):
        messages = text.rsplit("egcnn.errors.InputError: ", 1)[1:]
    return messages[-1] if messages else None


def _show_version(value: bool) -> None:
    if value:
        print(f"egcnn {egcnn.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
