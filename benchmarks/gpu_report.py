"""What gpu.py finds, as one JSON file and as tables."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from cases import Case, shape_name

import egcnn
from egcnn import ops
from egcnn.files import write_text

PROJECT = Path(__file__).resolve().parents[1]
OURS = "egcnn"
Row = dict[str, Any]


def finish(rows: Sequence[Row], case: Case, copies: Sequence[float]) -> None:
    """Add what only the whole case tells: floor, share of copy, best peer, target."""
    timed = [row for row in rows if "ms" in row]
    for row in timed:
        row["copy_gb_s"] = [rate / 1e9 for rate in copies]
        row["best_ms"] = row.get("replay_ms") or row["ms"]
        row["floor_ms"] = row["bytes"] / statistics.mean(copies) * 1e3
        row["share_of_copy"] = row["floor_ms"] / row["best_ms"]
    for row in timed:
        if row["provider"] != OURS:
            continue
        others = [r for r in timed if r["what"] == row["what"] and r is not row]
        if others:
            best = min(others, key=lambda other: other["ms"])
            row["best_peer"], row["best_peer_ms"] = best["provider"], best["ms"]
            row["ratio"] = best["ms"] / row["ms"]  # both by the same clock
        if target := case.targets.get(row["what"]):
            row["target"] = str(target)
            row["reached"] = target.reached(row["share_of_copy"], row["best_ms"])


def ask(*command: str) -> str:
    """What a command prints; empty where it fails or does not exist."""
    try:
        run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def ask_gpu(*names: str) -> dict[str, str]:
    """Properties of the first GPU by nvidia-smi; none where it does not know one of them."""
    answer = ask("nvidia-smi", "-i", "0", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    return dict(zip(names, answer.split(", "), strict=True)) if answer else {}


def gpu_state() -> dict[str, str]:
    """Clocks, temperature and power of the first GPU at this moment."""
    clocks = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
    return ask_gpu(*clocks, "temperature.gpu", "power.draw")


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The steps that gpu.sh took before: name, status, seconds, log, with tabs between."""
    steps = []
    for line in path.read_text().splitlines():
        name, status, seconds, log = line.split("\t")
        text = Path(log).read_text(errors="replace").replace(f"{PROJECT}/", "")
        lines = [stripped for line in text.splitlines() if (stripped := line.strip("= "))] or [""]
        step = {"name": name, "passed": status == "0", "seconds": int(seconds)}
        step["summary"] = lines[-1]
        if status != "0":
            step["log"] = lines[-60:]
        steps.append(step)
    return steps


class Report:
    """The JSON file and, beside it, the same as Markdown.

    Args:
        device: the type of device, ``"cuda"`` or ``"cpu"``.
        output: the folder for both files.
        steps: what gpu.sh did before, if it did.
    """

    def __init__(self, device: str, output: Path, steps: Path | None) -> None:
        cuda = device == "cuda"
        now = datetime.now(timezone.utc)
        name = torch.cuda.get_device_name() if cuda else f"CPU {platform.machine()}"
        self.rows: list[Row] = []
        self.data: dict[str, Any] = {
            "stamp": now.isoformat(timespec="seconds"),
            "complete": False,
            "device": name,
            "driver": ask_gpu("driver_version").get("driver_version") if cuda else None,
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "egcnn": egcnn.__version__,
            "commit": ask("git", "describe", "--always", "--dirty"),
            "build": ops.backend_info(),
            "gpu_before": gpu_state() if cuda else {},
            "gpu_after": {},
            "steps": read_steps(steps) if steps else [],
            "training": {"note": "not run"},
            "rows": self.rows,
        }
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.path = output / f"{now:%Y%m%dT%H%M%SZ}-{slug}.json"

    def write(self) -> None:
        """Both files, each whole or not at all."""
        write_text(self.path, json.dumps(self.data, indent=1) + "\n")
        write_text(self.path.with_suffix(".md"), self.text())

    def text(self) -> str:
        """All of it as Markdown."""
        data = self.data
        every = table(
            self.rows, "case", "what", "provider", "ms", "share_of_copy", "peak_mb", "difference"
        )
        return f"""# {data["device"]}, {data["stamp"]}

egcnn {data["egcnn"]} ({data["commit"] or "no git"}), torch {data["torch"]}, CUDA {data["cuda"]}, \
driver {data["driver"]}{"" if data["complete"] else ". **It did not come to its end.**"}

## Every provider

{every}

{self.summary()}
"""

    def summary(self) -> str:
        """The steps before, the training step, and ours against the best peer."""
        steps = [
            f"- {step['name']}: {'passed' if step['passed'] else 'FAILED'} in {step['seconds']} s: "
            f"{step['summary']}"
            for step in self.data["steps"]
        ]
        training = self.data["training"]
        kinds = [kind for kind in ("fused", "reference") if kind in training]
        costs = [{"operators": kind, **training[kind]} for kind in kinds]
        patch = f" at {shape_name(*training['patch'])}" if costs else ""
        ours = [row for row in self.rows if row["provider"] == OURS]
        return "\n".join(
            [
                *(["## Steps before", "", *steps, ""] if steps else []),
                f"## A training step of EG-CNN around Seg-Net in bf16{patch}",
                "",
                table(costs, "operators", "ms", "peak_mb") if costs else training["note"],
                "",
                "## egcnn against the best peer",
                "",
                table(
                    ours,
                    *("case", "what", "ms", "replay_ms", "floor_ms", "copy_gb_s", "share_of_copy"),
                    *("target", "reached", "best_peer", "best_peer_ms", "ratio"),
                ),
            ]
        )


def table(rows: Sequence[Row], *columns: str) -> str:
    """Rows as a Markdown table; a note stands where the milliseconds would."""

    def cell(row: Row, column: str) -> str:
        value = row.get(column)
        if column == "ms" and value is None:
            return str(row["note"]).replace("|", "/")
        if value is None:
            return ""
        if column == "copy_gb_s":
            return f"{statistics.mean(value):.0f}"
        if column == "share_of_copy":
            return f"{value:.0%}"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
        return str(value)

    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[cell(row, column) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
