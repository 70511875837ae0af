"""The benchmarks' peers compute what the operators compute, and each command runs to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import pytest
import torch
from torch import Tensor

from egcnn.ops import reference

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS.parent))

from benchmarks import cases, gpu, gpu_profile, report, results  # noqa: E402
from benchmarks.cases import phantom  # noqa: E402
from benchmarks.peers import PEERS, Peer, loss_reference, sums_reference  # noqa: E402

REGIONS = [(1, 2, 4), (1, 4), (4,)]
SHAPES = [(2, 3, 5, 7, 6), (1, 1, 1, 4, 9), (1, 2, 1, 1, 1)]
#: All but those that stand beside a call and compute something else.
MAIN = {operator: cases.peers_of(operator, "main") for operator in PEERS}
FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def peers_of(operator: str, exact: bool = True) -> Any:
    """Each function once, whether compiled or not."""
    functions = {peer.function: peer for peer in MAIN[operator] if peer.exact == exact}
    return pytest.mark.parametrize("peer", functions.values(), ids=lambda peer: peer.name)


def device_of(peer: Peer) -> str:
    if "cpu" in peer.devices:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return "cuda"


@peers_of("sobel_edges")
@pytest.mark.parametrize("shape", SHAPES)
def test_sobel_edges(peer: Peer, shape: tuple[int, ...]) -> None:
    device = device_of(peer)
    masks = ((torch.rand(shape) > 0.6).to(torch.uint8) * 3).to(device)
    assert torch.equal(peer.function(masks), reference.sobel_edges(masks))
    labels = torch.randint(0, 5, (shape[0], 1, *shape[2:]), dtype=torch.uint8).to(device)
    assert torch.equal(peer.function(labels, REGIONS), reference.sobel_edges(labels, REGIONS))


@peers_of("sobel_edges", exact=False)
def test_other_definitions_of_an_edge(peer: Peer) -> None:
    """Inexact peers mark the same surface, some of them thinner."""
    masks = (phantom(1, (24, 26, 22), torch.device("cpu")) > 0).to(torch.uint8)
    edges, sobel = peer.function(masks), reference.sobel_edges(masks)
    assert edges.dtype == sobel.dtype
    assert edges.shape == sobel.shape
    assert 0.2 < edges.sum() / sobel.sum() < 1.2
    near = torch.nn.functional.max_pool3d(sobel.float(), 3, 1, 1)
    assert (near[edges.bool()] == 1).all()


@peers_of("sobel_magnitude")
@pytest.mark.parametrize("shape", SHAPES[:2])  # conv3d gives 1e-7 where the gradient is 0
def test_sobel_magnitude(peer: Peer, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=device_of(peer), requires_grad=True)
    compare(peer, (x,), (x,), reference.sobel_magnitude, 1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("gates", "peer"),
    [(1, peer) for peer in MAIN["voxel_gate"]] + [(6, peer) for peer in MAIN["channel_gate"]],
    ids=lambda value: getattr(value, "name", value),
)
def test_edge_gate(
    peer: Peer, gates: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    e, m = (torch.randn(2, 6, 5, 4, 7).to(dtype, memory_format=memory_format) for _ in range(2))
    weights = [torch.randn(gates, 6), torch.randn(gates, 6), torch.randn(gates)]
    inputs = tuple(tensor.requires_grad_() for tensor in (e, m, *weights))
    if dtype == torch.bfloat16:  # whose rounding flips some slopes of the ReLU
        inputs = tuple(tensor.detach() for tensor in inputs)
        tolerance = 1e-2
    else:
        tolerance = 1e-5
    compare(peer, inputs, inputs if dtype == torch.float32 else (), reference.edge_gate, tolerance)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("gates", "peer"),
    [(1, peer) for peer in MAIN["upsampled_voxel_gate"]]
    + [(6, peer) for peer in MAIN["upsampled_channel_gate"]],
    ids=lambda value: getattr(value, "name", value),
)
def test_edge_gate_upsampled(peer: Peer, gates: int, memory_format: torch.memory_format) -> None:
    sizes = (3, 2, 4), (5, 4, 7)
    e, m = (torch.randn(2, 6, *size).to(memory_format=memory_format) for size in sizes)
    weights = [torch.randn(gates, 6), torch.randn(gates, 6), torch.randn(gates)]
    inputs = tuple(tensor.requires_grad_() for tensor in (e, m, *weights))
    compare(peer, inputs, inputs, reference.edge_gate_upsampled, 1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@peers_of("group_norm_relu")
def test_group_norm_relu(
    peer: Peer, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = torch.randn(2, 6, 5, 4, 7).to(dtype, memory_format=memory_format).requires_grad_()
    weight, bias = (torch.randn(6, requires_grad=True) for _ in range(2))
    leaves = (x, weight, bias) if dtype == torch.float32 else ()  # rounding flips some slopes

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    compare(peer, (x, 2, weight, bias), leaves, reference.group_norm_relu, tolerance)


@peers_of("gumbel_consistency")
@pytest.mark.parametrize("shape", [(2, 4, 6, 9, 7), (1, 3, 1, 4, 9), (2, 5, 8, 8, 8)])
def test_gumbel_consistency(peer: Peer, shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8)
    target[..., 1:4] = 1
    target[:1, :, :, 2:5, 2:6] = 2
    logits = torch.randn(shape, requires_grad=True)
    seed = torch.tensor(2**40 + 5)
    compare(peer, (logits, target, seed), (logits,), reference.gumbel_consistency, 1e-4)


@peers_of("region_sums")
def test_region_sums(peer: Peer) -> None:
    logits = torch.randn(2, 3, 6, 9, 7, requires_grad=True)
    target = (torch.rand(logits.shape) < 0.2).to(torch.uint8)
    compare(peer, (logits, target), (logits,), sums_reference, 1e-5)


@peers_of("total_loss")
def test_total_loss(peer: Peer) -> None:
    logits, edge_logits = (torch.randn(2, 3, 6, 9, 7, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (2, 1, 6, 9, 7))]
    inputs = (logits, edge_logits, labels, torch.tensor(5))
    compare(peer, inputs, inputs[:2], loss_reference, 1e-4)


def compare(
    peer: Peer,
    arguments: tuple[Tensor, ...],
    leaves: tuple[Tensor, ...],
    specification: Any,
    tolerance: float,
) -> None:
    """Values, and the gradients where the peer has any, relative to the largest expected one."""
    result, expected = peer.function(*arguments), specification(*arguments)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    pairs = [(result.detach(), expected.detach())]
    if peer.differentiable and leaves:
        grad = torch.randn_like(expected)
        mine, theirs = (torch.autograd.grad(out, leaves, grad) for out in (result, expected))
        pairs += zip(mine, theirs, strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item() + 1e-12)


# The benchmarks are not installed, but must use the installed egcnn first, as here.
PATHS = os.pathsep.join(filter(None, sys.path))


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, **environment},
        cwd=tempfile.gettempdir(),  # Python looks there first, and a checkout's egcnn is not built
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.thorough
def test_gpu_script_without_a_gpu(tmp_path: Path) -> None:
    """All of it but what a GPU's tools do, at tiny sizes, peers traced and not compiled."""
    arguments = ["--device", "cpu", "--quick", tmp_path]
    result = run("bash", BENCHMARKS / "gpu.sh", *arguments, PYTHON=sys.executable)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "compute-sanitizer --tool memcheck" in result.stdout
    assert len(list(tmp_path.iterdir())) <= 7

    data = json.loads((tmp_path / "gpu.json").read_text())
    for key in ("stamp", "device", "driver", "cuda", "torch", "egcnn", "commit", "build"):
        assert key in data
    assert data["complete"]
    names = "build values cases profile training peers compiled-training tests memcheck racecheck"
    assert [step["name"] for step in data["steps"]] == names.split()
    assert all(step["passed"] for step in data["steps"])
    assert not [row["note"] for row in data["rows"] if "note" in row]
    training = [row for row in data["rows"] if row["group"] == "training"]
    assert all({"ms", "peak_mb"} <= set(row) for row in training)
    losses = {row["provider"]: row.get("first_loss") for row in training}
    assert losses.pop("edge stream's convolutions") is None
    assert set(losses) == {"egcnn", "reference", "backbone alone", "egcnn, compiled"}
    assert None not in losses.values()
    assert losses["egcnn"] == pytest.approx(losses["reference"], rel=0.05)
    assert any("conv" in row["operator"] for row in next(iter(data["profiles"].values())))

    rows = [row for row in data["rows"] if row["group"] == "main"]
    for row in rows:
        assert {"case", "what", "provider", "ms", "floor_ms", "share", "gb_s"} <= set(row)
        assert len(row["bandwidth_gb_s"]) == 2
    names = {p.name: p for peers in MAIN.values() for p in peers if "cpu" in p.devices}
    names = {name: peer for name, peer in names.items() if not peer.autotuned}
    for row in rows:
        if row["provider"] in names and names[row["provider"]].exact:
            assert row["difference"] < (0.2 if "bf16" in row["case"] else 1e-3), row
    assert {row["provider"] for row in rows} == {"egcnn", *names}
    ours = [row for row in rows if row["provider"] == "egcnn"]
    assert all(row["best_peer"] in names and row["ratio"] > 0 for row in ours)
    assert {row["target"] for row in ours if "target" in row} == {
        *("80% of copy", "70% of copy", "45 µs", "230 µs")
    }

    every = (tmp_path / "gpu.md").read_text().split("## Every provider")[1]
    assert every.count("| egcnn |") == len(ours) + 1


@pytest.mark.slow
@pytest.mark.thorough
def test_gpu_scripts_need_few_packages(tmp_path: Path) -> None:
    """A machine that is lent for minutes may lack these, and reach no network."""
    absent = "import sys\nfor name in 'monai', 'nibabel', 'lightning': sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(absent)
    operators = BENCHMARKS.parent / "tests" / "ops"
    for command in (
        ["-c", "import benchmarks.gpu"],
        ["-m", "benchmarks.gpu_profile", "--device", "cpu", "--quick"],
        ["-m", "pytest", operators, "--collect-only", "-p", "no:cacheprovider"],
    ):
        paths = os.pathsep.join([str(tmp_path), PATHS])
        result = run(sys.executable, *command, PYTHONPATH=paths)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", [gpu, gpu_profile])
def test_gpu_scripts_know_each_operator(script: Any) -> None:
    found = {case.operator for case in script.cases(torch.device("cpu"), True)}
    # On CUDA the total loss is made of the kernels of other operators.
    assert found | {"total_loss"} == set(PEERS)


def test_a_fault_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies in one case is followed by another, which goes on behind it."""
    starts: list[list[str]] = []

    def worker(command: list[str], journal: gpu.Journal, patience: float) -> int:
        tasks = json.loads(command[command.index("--tasks") + 1])
        starts.append(tasks)
        for task in tasks:
            journal.add(began=task)
            if task == "b":
                return -6
        return 0

    monkeypatch.setattr(gpu, "watch", worker)
    monkeypatch.setattr(gpu, "tasks", lambda options: {"first": ["a", "b", "c"], "next": ["d"]})
    options = SimpleNamespace(output=tmp_path, budget=60, steps=None, device="cpu")
    assert gpu.supervise(options) == 1
    assert starts == [["a", "b", "c"], ["c"], ["d"]]
    (row,) = gpu.Journal(tmp_path).read("row")
    assert (row["case"], row["note"]) == ("b", "its process ended with status -6")


def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    journal = gpu.Journal(tmp_path)
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu.watch(hang, journal, patience=0.2) == -9
    assert gpu.watch([sys.executable, "-c", "exit(3)"], journal, patience=60) == 3


def test_steps_of_the_script(tmp_path: Path) -> None:
    log = tmp_path / "tests.log"
    log.write_text("collected 3 items\nE  assert 1 == 2\n1 failed, 2 passed in 0.1s\n")
    (tmp_path / "steps").write_text(f"build\t0\t31\t{os.devnull}\ntests\t1\t2\t{log}\n")
    build, tests = results.read_steps(tmp_path / "steps")
    assert build["passed"]
    assert tests["summary"] == "1 failed, 2 passed in 0.1s"
    assert "E  assert 1 == 2" in tests["log"]


def test_suite_at_its_smallest(tmp_path: Path) -> None:
    """Only gate and consistency: .ci/run runs all of ``pytest benchmarks --quick``."""
    pytest.importorskip("pytest_benchmark")  # of the extra for benchmarks
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", BENCHMARKS, "--quick", "--results", path]
    chosen = "gate and (size or sweep) or cliff and voxel"
    result = run(*command, "-k", chosen, "-p", "no:cacheprovider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "faster" in result.stdout
    data = json.loads(path.read_text())
    assert {row["group"] for row in data["rows"]} == {"size", "sweep", "cliff"}
    cliffs = [row for row in data["rows"] if row["group"] == "cliff"]
    assert len({row["case"] for row in cliffs}) == 4
    assert all(row["beside_ms"] > 0 and row["beside_bytes"] >= row["bytes"] / 2 for row in cliffs)
    assert all(row["memory"] == "reused" and row["low_ms"] <= row["ms"] for row in data["rows"])
    assert "compiled sum" in {row["provider"] for row in data["rows"]}


def made_results() -> dict[str, Any]:
    """Results in the suite's format, with round numbers."""
    rows = []
    for operator, what in (("sobel_edges", "forward"), ("voxel_gate", "both")):
        for group, voxels in (("main", 8000), ("sweep", 1000), ("sweep", 1000000)):
            floor = {"bytes": 2 * voxels, "floor_ms": voxels * 1e-6}
            for provider, slower in (("egcnn", 2), ("eager reference", 60), ("compiled", 20)):
                ms = voxels * slower * 1e-6
                row = {"group": group, "operator": operator, "case": f"{operator} {voxels}"}
                row |= {"provider": provider, "what": what, "memory": "reused", "voxels": voxels}
                row |= {"ms": ms, "low_ms": ms, "high_ms": ms, "share": 1 / slower, **floor}
                if provider == "egcnn":
                    row |= {"best_peer": "compiled", "best_peer_ms": 10 * ms, "ratio": 10.0}
                rows.append(row)
    rows += [row | {"memory": "fresh", "ratio": 3.0} for row in rows if row["group"] == "main"]
    cliff = {"group": "cliff", "case": "half the bytes", "beside_ms": 0.08, "beside_bytes": 32000}
    rows.append(rows[0] | cliff | {"ms": 0.06})
    stamp = {"stamp": "2026-01-02T03:04:05+00:00", "device": "a processor", "threads": 2}
    versions = {"instructions": "avx512", "torch": "2.9", "egcnn": "0.1", "commit": "abc"}
    return {**stamp, **versions, "complete": True, "rows": rows}


def test_report(tmp_path: Path) -> None:
    path, picture = tmp_path / "results.json", tmp_path / "picture.png"
    report.write(path, made_results())
    arguments = ["-m", "benchmarks.report", path, "--summary", "--picture", picture]
    result = run(sys.executable, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("a processor (2 threads, avx512), torch 2.9, egcnn 0.1 (abc)")
    line = "| voxel_gate 8000 | both | 0.016 | 50% | compiled | 0.16 | 10x | 30x |"
    assert line in result.stdout.splitlines()
    assert picture.read_bytes().startswith(b"\x89PNG")
    everything = path.with_suffix(".md").read_text()
    assert "| voxel_gate 8000 | both | fresh | 0.016 (0.016-0.016) |" in everything
    assert "3x |" in everything
    # 3/4 of the time for half of the bytes.
    assert "| half the bytes | forward | 0.06 (0.016-0.016) | 0.08 | 50% | 1.5x |" in everything


@pytest.mark.parametrize("script", ["gpu.sh", "gpu.py"])
def test_gpu_command_says_so_where_no_gpu_is(script: str, tmp_path: Path) -> None:
    command = ["bash", BENCHMARKS / "gpu.sh", tmp_path]
    if script == "gpu.py":
        command = [sys.executable, "-m", "benchmarks.gpu", "cases", "--output", tmp_path]
    result = run(*command, CUDA_VISIBLE_DEVICES="", PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "so there is nothing to measure." in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.thorough
def test_data_command(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    result = run(sys.executable, "-m", "benchmarks.data", "--quick", "--output", path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(path.read_text())["rows"]
    patches = [row["by"] for row in rows if row["what"] == "patches"]
    there = find_spec("nnunetv2") is not None
    assert len(patches) == 4 if there else 3
    assert ("skipped: needs batchgenerators" in result.stdout) is not there
    assert all(value > 0 for row in rows for value in row.values() if isinstance(value, float))


@pytest.mark.slow
@pytest.mark.thorough
def test_large_ct_command(tmp_path: Path) -> None:
    size = ("--slices", 9, "--side", 40)
    result = run(sys.executable, "-m", "benchmarks.large_ct", *size, "--folder", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| 9x40x40 | 0." in result.stdout
    shapes = {path.name: nib.load(path).shape for path in tmp_path.rglob("*.nii.gz")}
    assert shapes == {
        "ct.nii.gz": (9, 40, 40),
        "ct_edges.nii.gz": (9, 40, 40, 2),
        "ct_probabilities.nii.gz": (9, 40, 40, 2),
    }
