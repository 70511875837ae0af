"""Fixtures that all tests share."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
import torch

from egcnn.machine import usable_cores

if TYPE_CHECKING:
    from egcnn.data import Dataset

#: More processes would mostly wait for the longest files.
MOST_PROCESSES = 8


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on all cores, without the tests that take minutes.

    A few named tests start faster in one process, and all of them run.
    """
    option = config.option
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    option.markexpr = option.markexpr or "not thorough"  # workers read the command line anew
    if hasattr(config, "workerinput") or option.usepdb:  # workers start none of their own
        return
    if config.pluginmanager.hasplugin("xdist") and option.numprocesses is None:
        option.numprocesses = min(usable_cores(), MOST_PROCESSES)
        # Threads that wait for cores which other processes have taken cost more than they gain.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        option.dist = "loadfile"
        option.loadscopereorder = False


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what is left out where there is no GPU."""
    if not torch.cuda.is_available():
        terminalreporter.write_line("torch finds no CUDA device: no test ran on a GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of most slow tests, so that no process is left with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real cases next to the project; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real cases are not here (no {folder.parent.name}/{folder.name})")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three tiny synthetic cases, anew for each module, whose tests may change them."""
    # Here, since the operators' tests run without MONAI and nibabel, too.
    from egcnn.data import open_dataset
    from egcnn.data.phantom import write_brats

    root = tmp_path_factory.mktemp("data")
    write_brats(root, 3, shape=(16, 18, 17), seed=1)
    return open_dataset(root)


@pytest.fixture(params=["ascii", "closed pipe", "full"])
def bad_output(request: pytest.FixtureRequest) -> Iterator[IO[str]]:
    """An output that cannot take all that is printed."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        if request.param == "full":
            yield stack.enter_context(open("/dev/full", "w", encoding="utf-8"))
        elif request.param == "ascii":
            yield stack.enter_context(open(os.devnull, "w", encoding="ascii"))
        else:
            reading, writing = os.pipe()
            os.close(reading)
            yield stack.enter_context(os.fdopen(writing, "w", encoding="utf-8"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed the random numbers of every test."""
    torch.manual_seed(0)
