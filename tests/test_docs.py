"""The documentation: its snippets and commands run, and Sphinx builds it without a warning.

Blocks of a page run one after the other, in one folder that holds :data:`DATASETS` and, for Python,
one namespace; in the README each has its own. A block whose info string goes on with
``untested: REASON`` does not run; where one goes on with ``needs: MODULE``, the rest of the page is
skipped without that module.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from egcnn import training
from egcnn.cli import main
from egcnn.comparison import networks
from egcnn.data import write_volume
from egcnn.data.phantom import write_phantoms

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    ROOT / "tests/cuda_on_cpu/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
RUN = {"python", "console", "shell", "sh", "bash"}
#: Languages of blocks that are nothing to run.
SHOWN = {"bibtex", "cpp", "json", "math", "text", "yaml"}
#: What makes the default configuration of any dataset a training of a second.
TINY = {
    **{"network.backbone.filters": 2, "epochs": 1, "batch_size": 1, "precision": "32-true"},
    **{"network.backbone.blocks_down": (1, 1), "network.backbone.blocks_up": (1,)},
    **{"preprocessing.patch": (16, 16, 16), "preprocessing.spacing": None},
}
#: Options that follow those of a command.
TINY_OPTIONS = {
    "compare": "--backbones unet --arms egcnn --seeds 1 --epochs 1 --set spacing=null",
    "demo": "--cases 3 --shape 16,16,16 --epochs 1",
    "evaluate": "--workers 0",
    "phantom": "--cases 2 --shape 16,16,16",
}
#: Datasets by the names that the pages use.
DATASETS = {
    "MICCAI_BraTS_2019_Data_Training": "brats",
    "kits19": "kits",
    "nnUNet_raw/Dataset001_BrainTumour": "nnunet",
    "Task04_Hippocampus": "decathlon",
    "demo/data": "brats",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, other than Sphinx's directives."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```([^\s`{]\S*)? *(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [Block(*parts) for parts in found if not parts[1].startswith("{")]


def commands(text: str) -> list[str]:
    """The lines after ``$``, without what they print."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    for language, mark, text in blocks(page):
        assert language in RUN | SHOWN, text
        assert not mark or re.match(r"untested: .{9}|needs: \w+$", mark), mark
        assert language != "console" or commands(text), text
    rest = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not re.search(r"\n\n {4}", rest), "an indented block; expected a fenced one"


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few tiny synthetic cases as each of :data:`DATASETS`."""
    root = tmp_path_factory.mktemp("datasets")
    for name, layout in DATASETS.items():
        if layout == "decathlon":
            write_decathlon(root / name)
        else:
            list(write_phantoms(layout, root / name, 5 if layout == "nnunet" else 3, (16, 16, 16)))
    return root


def write_decathlon(root: Path) -> None:
    """Three cases of a sphere in two halves."""
    z, y, x = np.ogrid[-8:8, -8:8, -8:8]
    label = ((z * z + y * y + x * x < 30) * (1 + (y > 0))).astype(np.uint8)
    for number in range(3):
        noise = np.random.default_rng(number).normal(0, 0.2, label.shape)
        for part, volume in (("imagesTr", (label + noise).astype(np.float32)), ("labelsTr", label)):
            (root / part).mkdir(parents=True, exist_ok=True)
            write_volume(volume, np.eye(4), root / part / f"hippocampus_{number:03}.nii.gz")
    names = [f"hippocampus_{number:03}.nii.gz" for number in range(3)]
    described = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"imagesTr/{n}", "label": f"labelsTr/{n}"} for n in names],
    }
    (root / "dataset.json").write_text(json.dumps(described))


def run_command(line: str) -> None:
    """Run a line of a shell, ``egcnn`` within this process and at a tiny size."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "egcnn":
        subprocess.run(["bash", "-euc", line], check=True)
        return
    arguments += shlex.split(TINY_OPTIONS.get(arguments[0], ""))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0, line


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        # Exporting in every format takes a minute, and tests/test_export.py does most of it.
        pytest.param(page, marks=[pytest.mark.thorough] * (page.name == "export.md"), id=page.name)
        for page in PAGES
        if any(block.language in RUN and not block.mark for block in blocks(page))
    ],
)
def test_blocks_run(
    page: Path, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = training.plan
    monkeypatch.setattr(training, "plan", lambda *of: plan(*of).change(TINY))
    monkeypatch.chdir(tmp_path)
    for folder in datasets.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    names: dict[str, Any] = {"__name__": page.stem}
    for language, mark, text in blocks(page):
        if mark.startswith("untested") or language not in RUN:
            continue
        if mark:
            pytest.importorskip(mark.removeprefix("needs: "))
        if language == "python":
            if page.name == "README.md":  # whose blocks are copied one by one
                names = {"__name__": page.stem}
            exec(compile(text, str(page), "exec"), names)
        elif language == "console":
            for line in commands(text):
                run_command(line)
        else:
            assert "egcnn " not in text, "expected ```console, which runs this egcnn"
            subprocess.run(["bash", "-euc", text], check=True)


def test_table_of_networks_is_what_the_command_prints() -> None:
    text = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
    assert "\n".join(networks(4, 3, 32, (160, 192, 128))) in text


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx", "furo", "myst_parser"))),
    reason="Sphinx is not installed; pip install '.[docs]'",
)
def test_sphinx_has_nothing_to_warn_of(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-qW", "-d", str(tmp_path / "d")]
    run = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "Sobel" in (tmp_path / "html" / "operators.html").read_text(encoding="utf-8")
    formulas = (tmp_path / "html" / "method.html").read_text(encoding="utf-8")
    assert 'display="block"' in formulas
    assert not re.search(r'<(script|link)[^>]*(src|href)="(https?:)?//', formulas)
