"""``pytest benchmarks``: each operator compared with its peers and with memory bandwidth.

``--quick`` takes tiny volumes, and traces compiled peers without compiling them: this only checks
that everything runs; its times are meaningless. ``--results PATH`` says where the JSON goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import report, results
from benchmarks.cases import Case
from benchmarks.clocks import MEMORY_MODES, Clock, CudaClock, WallClock
from benchmarks.measuring import CaseRun, Row, parts, providers
from benchmarks.peers import OURS, Peer

#: A provider that took more seconds than this is skipped at larger sizes of a sweep.
SLOW = 0.25


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("egcnn")
    group.addoption(
        "--quick", action="store_true", help="tiny volumes, to check that everything runs"
    )
    group.addoption("--results", type=Path, metavar="PATH", help="where to write the JSON")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--device", choices=["cpu", "cuda"], default=default)
    group.addoption(
        "--memory",
        choices=["all", *MEMORY_MODES],
        default="all",
        help="memory of the CPU's results; all: reused for every case, and the main cases "
        "again in the other modes, each in its own process",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # replaced by our own table
    config.stash[SUITE] = Suite(config)


class Suite:
    """The state of one benchmark session."""

    def __init__(self, config: pytest.Config) -> None:
        options = config.option
        self.quick = bool(options.quick)
        self.device = torch.device(options.device)
        self.memory = "reused" if options.memory == "all" else options.memory
        # The other modes follow at the end, each in its own process.
        several = options.memory == "all" and self.device.type == "cpu" and not self.quick
        self.modes_to_come = MEMORY_MODES[1:] if several else ()
        self.rows: list[Row] = []
        self.profiles: dict[str, list[Row]] = {}
        self.sat_out: set[tuple[str, str, str]] = set()
        self.found: dict[str, Any] = {}
        self.path: Path | None = None
        self._clock: Clock | None = None
        self._run: CaseRun | None = None
        if self.quick:
            torch.set_num_threads(1)  # such small volumes are not worth a second thread

    @property
    def clock(self) -> Clock:
        """The clock, created on first use since it changes how the process allocates."""
        if self._clock is None:
            cuda = self.device.type == "cuda"
            seconds = 0.01 if self.quick else 0.4
            self._clock = CudaClock() if cuda else WallClock(seconds, self.memory)
        return self._clock

    @property
    def backend(self) -> str:
        """The backend of torch.compile."""
        return "eager" if self.quick else "inductor"

    def measures(self, case: Case, peer: Peer, what: str) -> bool:
        """Of memory that is not reused, the main cases alone, and neither every peer nor part."""
        if self.memory == "reused":
            return True
        return case.group == "main" and "size" in peer.groups and what != "backward"

    def run_of(self, case: Case) -> CaseRun:
        """The current case; only one, since it holds its inputs."""
        if self._run is None or self._run.case is not case:
            self.finish_case()
            torch.manual_seed(0)
            self._run = CaseRun(self.clock, case, self.backend)
        return self._run

    def finish_case(self) -> None:
        """Measure the bandwidth after the current case and keep the case's rows."""
        if self._run is not None:
            self.rows += [row | {"memory": self.memory} for row in self._run.finish()]
        self._run = None


SUITE = pytest.StashKey[Suite]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measurement" not in metafunc.fixturenames:
        return
    suite = metafunc.config.stash[SUITE]
    measurements = [
        pytest.param((case, peer, what), id=f"{case.group}-{case.name}-{peer.name}-{what}")
        for case in metafunc.module.cases(suite.device, suite.quick)
        for peer in providers(case, suite.device)
        for what in parts(case, peer)
        if suite.measures(case, peer, what)
    ]
    metafunc.parametrize("measurement", measurements)


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.config.stash[SUITE]


@pytest.fixture
def record(benchmark: Any) -> Callable[[list[float]], None]:
    """Passes the times of our clock to pytest-benchmark, for its tables and files."""

    def replay(times: list[float]) -> None:
        ticks = accumulate(chain.from_iterable((t, 0.0) for t in times), initial=0.0)
        benchmark._timer = ticks.__next__
        benchmark.pedantic(lambda: None, rounds=len(times))

    return replay


@pytest.fixture
def measure(
    record: Callable[[list[float]], None], suite: Suite, measurement: tuple[Case, Peer, str]
) -> Callable[[], None]:
    """Measures one part of one case by one provider."""
    case, peer, what = measurement
    key = (case.operator, peer.name, what)

    def body() -> None:
        if case.group == "sweep" and key in suite.sat_out:
            pytest.skip(f"took more than {SLOW:g} s at a smaller size")
        run = suite.run_of(case)
        try:
            times = run.measure(peer, what)
        except Exception as error:
            if peer.name == OURS:
                raise
            run.note(peer, what, report.describe(error))
            pytest.xfail(f"the peer failed: {report.describe(error)}")
        if min(times) > SLOW:
            suite.sat_out.add(key)
        record(times)

    return body


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Measure the other memory modes, write the JSON."""
    suite = session.config.stash[SUITE]
    options = session.config.option
    suite.finish_case()
    if not suite.rows:
        return
    if any(row["group"] == "main" for row in suite.rows):
        for memory in suite.modes_to_come:
            suite.rows += measure_elsewhere(session.config, memory)
    suite.found = results.stamp(suite.device)
    suite.found |= {"complete": True, "rows": suite.rows, "profiles": suite.profiles}
    if options.results or not suite.quick:
        suite.path = options.results or results.default_path(suite.found)
        report.write(suite.path, suite.found)


def measure_elsewhere(config: pytest.Config, memory: str) -> list[Row]:
    """The rows of the same command in a new process with another memory mode."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if memory == "large pages":
        environment["THP_MEM_ALLOC_ENABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        # Not -m pytest, which would import this folder's egcnn instead of the installed one.
        command = [sys.executable, sys.argv[0], *config.invocation_params.args]
        command += ["--memory", memory, "--results", str(path)]
        process = subprocess.run(
            command,
            cwd=config.invocation_params.dir,
            env=environment,
            capture_output=True,
            text=True,
        )
        if not path.exists():
            raise RuntimeError(f"measuring {memory} memory failed:\n{process.stdout[-2000:]}")
        return json.loads(path.read_text())["rows"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: Any) -> None:
    suite = config.stash[SUITE]
    if suite.found:
        report.show(suite.found)
    if suite.path:
        terminalreporter.write_line(f"{suite.path}, {suite.path.with_suffix('.md').name}")
