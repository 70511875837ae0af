"""Cores and memory, and that the user's environment variables are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from egcnn import machine
from egcnn.machine import free_memory, prepare_cpu, usable_cores


def test_cpu_settings_leave_the_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    prepare_cpu()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    prepare_cpu()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    assert os.environ["OMP_NUM_THREADS"] == str(usable_cores())
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_torch_that_is_there_already_gets_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    try:
        torch.set_num_threads(5)
        prepare_cpu()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        torch.set_num_threads(1)
        prepare_cpu()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_memory_ends_at_the_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroups", lambda *_: [tmp_path])
    whole = free_memory()
    assert whole > 0
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert free_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 5000


def test_files_that_can_be_dropped_are_no_used_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cgroups", lambda *_: [tmp_path])
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 3000\n")
    assert free_memory() == 3500


def test_memory_ends_at_the_cgroup_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setattr(
        machine, "_cgroups", lambda controller="": [inner, tmp_path] if controller else []
    )
    (inner / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (inner / "memory.usage_in_bytes").write_text("3000\n")
    assert free_memory() > 5000
    (tmp_path / "memory.limit_in_bytes").write_text("5000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("3000\n")
    assert free_memory() == 2000
    (tmp_path / "memory.usage_in_bytes").write_text("6000\n")
    assert free_memory() == 0


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_memory_ends_at_the_process_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}[kind]
    used = machine._numbers(Path("/proc/self/status"))[name] * 1024
    asked = getattr(machine.resource, kind)
    infinite = machine.resource.RLIM_INFINITY
    monkeypatch.setattr(
        machine.resource,
        "getrlimit",
        lambda which: (used + 10e6 if which == asked else infinite, infinite),
    )
    assert 0 < free_memory() < 10.1e6
