"""The page of a report: what it says, that it needs nothing else, and a browser that shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egcnn.checkpoint import load
from egcnn.comparison import Arm, Comparison, Result, compare, write_comparison
from egcnn.data import open_dataset, write_volume
from egcnn.errors import InputError
from egcnn.evaluation import MEAN, Evaluation, evaluate, read_evaluation, write_evaluation
from egcnn.metrics import COLUMNS, METRICS, VOXEL_METRICS
from egcnn.report import write_report
from egcnn.report.found import find
from egcnn.training import TrainingConfig, fit, plan

# Names as an attacker's, or a careless colleague's, file may have.
CASE = "<img src=x onerror=alert(1)>&"
REGION = "</script><script>alert(1)</script>"
SECTIONS = ("scores", "worst", "slices", "boundary", "edges", "training", "provenance")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of two classes in the layout of the Decathlon, with names of every kind."""
    root = tmp_path_factory.mktemp("report") / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{CASE}{number}" for number in range(4)]
    for number, name in enumerate(names):
        labels = np.zeros((12, 14, 10), np.uint8)
        labels[3:9, 3 + number : 9, 2:8] = 1
        labels[5:7, 5 + number : 8, 4:6] = 2
        image = labels * 2 + rng.normal(size=labels.shape)
        affine = np.diag([1.0, 1.0, 1.5, 1.0])
        write_volume(image.astype(np.float32), affine, root / "imagesTr" / f"{name}.nii.gz")
        write_volume(labels, affine, root / "labelsTr" / f"{name}.nii.gz")
    listed = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    described = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "outer", "2": REGION},
        "training": listed,
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def tiny(data: Path, epochs: int = 2) -> TrainingConfig:
    settings = {
        "epochs": epochs,
        "fraction": 0.5,
        "network.backbone.filters": 4,
        "network.backbone.blocks_down": (1, 1),
        "network.backbone.blocks_up": (1,),
        "preprocessing.patch": (12, 12, 8),
    }
    return plan(open_dataset(data)).change(settings)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    fit(tiny(data), open_dataset(data), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(run)


class Page(HTMLParser):
    """What a page has: tags with their attributes, texts, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.cell = self.script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th")
        self.script = tag == "script"
        if self.cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")
        self.script = False

    def handle_data(self, data: str) -> None:
        if self.cell:
            # A deviation may stand below its mean, but not be torn from its sign.
            self.rows[-1][-1] += data.replace("\u00a0", " ")
        if self.script:
            self.scripts.append(data)

    def attributes(self, name: str) -> list[str]:
        return [
            value or "" for _, found in self.tags for key, value in found.items() if key == name
        ]


def test_a_page_needs_nothing_else(page: Path) -> None:
    found = Page(page)
    for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        for value in found.attributes(name):
            assert value.startswith(("#", "data:")), value
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"url\(([^)]*)\)", text) == re.findall(r"url\((#\w+)\)", text)
    assert "@import" not in text
    ids = found.attributes("id")
    assert len(set(ids)) == len(ids)
    assert [part for part in SECTIONS if part in ids] == list(SECTIONS)
    assert set(found.attributes("href")) >= {f"#{part}" for part in SECTIONS}


def test_names_from_files_are_text(page: Path) -> None:
    found = Page(page)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert found.attributes("onerror") == []
    cells = [cell for row in found.rows for cell in row]
    assert REGION in cells
    assert any(CASE in cell for cell in cells)
    # The policy lets the page's own script run and no other.
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    hashed = base64.b64encode(hashlib.sha256(found.scripts[-1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{hashed}'" in policy
    assert policy.startswith("default-src 'none'")


def test_numbers_are_those_of_the_scores(page: Path, run: Path) -> None:
    scores = json.loads((run / "predictions" / "metrics.json").read_text())
    rows = Page(page).rows
    for region, summary in scores["summary"].items():
        row = next(row for row in rows if row[0] == region)
        for metric, text in zip(VOXEL_METRICS, row[1:], strict=True):
            mean, std = (summary[metric][name] for name in ("mean", "std"))
            digits = METRICS[metric].digits
            assert text == f"{mean:.{digits}f} ± {std:.{digits}f}"
    cases = {
        name: sum(region["dice"] for region in regions.values()) / len(regions)
        for name, regions in scores["cases"].items()
    }
    listed = [row for row in rows if row and row[0] in cases]
    assert [row[0] for row in listed] == sorted(cases, key=cases.__getitem__)
    assert [row[1] for row in listed] == [f"{value:.3f}" for value in sorted(cases.values())]
    assert scores["networks"].keys() == {load(run / "last.ckpt").provenance["checkpoint"]}


def test_volumes_of_the_page(page: Path) -> None:
    volumes = json.loads(Page(page).scripts[0])
    assert len(volumes["cases"]) == 3
    for case in volumes["cases"]:
        titles = [panel["title"] for panel in case["panels"]]
        assert titles[:6] == [
            *("Image", "Truth", "Prediction", "Disagreement"),
            *("True edges", "Predicted edges"),
        ]
        assert titles[6:] == ["Attention 1/2 size", "Attention full size"]
        assert all(panel["heat"]["shape"] for panel in case["panels"][6:])
    assert len(volumes["heat"]) == 256


def test_what_was_evaluated_comes_back(run: Path, page: Path, data: Path) -> None:
    path = run / "predictions" / "metrics.json"
    read = read_evaluation(path)
    assert read.folders == {"predictions": str(path.parent), "data": str(data)}
    write_evaluation(read, path.parent.parent / "again")
    assert json.loads((run / "again" / "metrics.json").read_text()) == json.loads(path.read_text())
    shutil.rmtree(run / "again")


def test_an_evaluation_without_its_network_or_data(
    run: Path, page: Path, data: Path, tmp_path: Path
) -> None:
    scored = evaluate(run / "predictions", open_dataset(data))
    write_evaluation(scored, tmp_path / "e")
    text = write_report(tmp_path / "e").read_text()
    assert "The attention maps need the network" in text
    assert 'id="training"' not in text
    # A training beside it that made something else is left out.
    other = tmp_path / "e" / "other"
    other.mkdir()
    for name in ("config.json", "history.csv"):
        shutil.copy(run / name, other / name)
    assert 'id="training"' not in write_report(tmp_path / "e").read_text()
    # With the training, they are there.
    volumes = json.loads(Page(write_report([tmp_path / "e", run])).scripts[0])
    assert "heat" in volumes["cases"][0]["panels"][-1]
    gone = replace(scored, folders={"data": str(tmp_path / "gone"), "predictions": ""})
    write_evaluation(gone, tmp_path / "f")
    text = write_report(tmp_path / "f").read_text()
    assert "The dataset is not where it was" in text
    assert "<canvas" not in text


def test_a_page_names_no_folder_outside(run: Path, page: Path, data: Path, tmp_path: Path) -> None:
    """Not even where two folders have one name: the page may be handed on."""
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name / "run")
    text = write_report([tmp_path / "a" / "run", tmp_path / "b" / "run"]).read_text()
    assert "a/run" in text
    assert "b/run" in text
    for folder in (tmp_path, data.parent):
        assert str(folder) not in text


def test_predictions_of_a_training_are_kept(run: Path, page: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "predictions" / "metrics.json").unlink()
    labels = next(path for path in (moved / "predictions").glob("*.nii.gz") if "_" not in path.name)
    for other in (moved / "predictions").glob("*.nii.gz"):
        if other != labels:
            other.unlink()
    before = labels.read_bytes()
    write_report(moved)
    assert labels.read_bytes() == before
    # Trained anew, their network is gone.
    for checkpoint in moved.glob("*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    assert "no checkpoint here made these predictions" in write_report(moved).read_text()
    scores = json.loads((moved / "predictions" / "metrics.json").read_text())
    assert len(scores["cases"]) == 1
    assert len(scores["missing"]) == 3


def test_what_is_no_report_stays(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "report.html"
    mine.write_text("mine")
    with pytest.raises(InputError, match="was not written by egcnn report"):
        write_report(run, mine)
    assert mine.read_text() == "mine"
    with pytest.raises(InputError, match="neither a training"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "none")
    row = dict.fromkeys(COLUMNS, 0.5)
    for cases in ({}, {"a": {}}, {"a": {"x": row}, "b": {"y": row}}, {"a": {"x": {"dice": 1}}}):
        data = {"cases": cases, "missing": []}
        (tmp_path / "metrics.json").write_text(json.dumps(data))
        with pytest.raises(InputError, match=r"metrics\.json: .*(no case|other regions or scores)"):
            write_report(tmp_path, tmp_path / "page.html")
    (tmp_path / "metrics.json").write_text('{"cases": {"a": 1}}')
    with pytest.raises(InputError, match=r"metrics\.json: .*expected a file of egcnn evaluate"):
        write_report(tmp_path, tmp_path / "page.html")


@pytest.mark.slow
def test_a_comparison_side_by_side(data: Path, tmp_path: Path) -> None:
    arms = [Arm("unet", "none"), Arm("unet", "egcnn")]
    runs = compare(open_dataset(data), tiny(data, 1), tmp_path, arms=arms, seeds=1)
    write_comparison(runs, tmp_path)
    found = Page(write_report(tmp_path))
    case = json.loads(found.scripts[0])["cases"][0]
    notes = [(panel["title"], panel.get("note", "").split(";")[0]) for panel in case["panels"][2:]]
    alone, gated = "U-Net, none", "U-Net, EG-CNN"
    # The panels of the image and of the truth come first.
    assert [note for title, note in notes if title == "Prediction"] == [gated, alone]
    assert [note for title, note in notes if title == "Predicted edges"] == [gated]
    assert [note for title, note in notes if title.startswith("Attention")] == [gated] * 2
    ids = found.attributes("id")
    assert "comparison" in ids
    assert len(set(ids)) == len(ids)
    (tmp_path / "comparison.json").write_text('{"runs": []}')
    with pytest.raises(InputError, match=r"comparison\.json: no run"):
        write_report(tmp_path)


def test_a_comparison_shows_what_the_paper_s_figures_do(tmp_path: Path) -> None:
    """Seg-Net with and without the edge stream, wherever it stands among the backbones."""
    means = dict.fromkeys(COLUMNS, 0.5)
    arms = [Arm(name, kind) for name in ("unet", "segnet") for kind in ("none", "egcnn")]
    results = [
        Result(arm, seed, 9, 0.5, {"organ": means, MEAN: means}) for arm in arms for seed in (3, 1)
    ]
    for result in results:
        scores = tmp_path / f"{result.arm.name}-seed{result.seed}" / "predictions"
        write_evaluation(Evaluation({"a": {"organ": means}}), scores)
    for shown, title in ((results, "Seg-Net"), (results[:4], "U-Net")):
        write_comparison(Comparison(tuple(shown)), tmp_path)
        found = find([tmp_path]).evaluations
        assert [evaluated.title for evaluated in found] == [f"{title}, EG-CNN", f"{title}, none"]


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here")
    return found


PROBE = """
console.log("the probe runs");
const wait = setInterval(() => {
  const details = document.querySelector("details.case");
  if (details.dataset.ready !== "yes") return;
  clearInterval(wait);
  const plane = details.querySelector(".plane");
  const canvases = [...plane.querySelectorAll("canvas")];
  const draw = () => canvases.map((canvas) => canvas.toDataURL());
  const before = draw();
  const slider = plane.querySelector("input");
  const said = [plane.querySelector("output").textContent];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  said.push(plane.querySelector("output").textContent);
  const after = draw();
  const result = {
    said,
    moved: before.map((url, number) => url !== after[number]),
    drawn: new Set(before).size,
    wide: document.documentElement.scrollWidth - window.innerWidth,
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    sizes: canvases.map((canvas) => [canvas.width, canvas.height]),
  };
  document.title = "probed " + JSON.stringify(result);
}, 50);
"""


def probed(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], list[str]]:
    """Open a page with a probe in it; returns what that found, and the lines of the console."""
    hashed = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    text = text.replace("script-src '", f"script-src 'sha256-{hashed}' '", 1)
    copy = folder / "probed.html"
    copy.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    command = [
        *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={folder / 'profile'}", "--disable-background-networking"),
        *(f"--window-size={width},800", "--virtual-time-budget=20000", "--dump-dom"),
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>probed (.*?)</title>", done.stdout, re.S)
    assert title is not None, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title[1].replace("&amp;", "&")), lines


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    found, console = probed(page, tmp_path, width)
    assert [re.sub(r".*CONSOLE\S*\] ", "", line).split(", source")[0] for line in console] == [
        '"the probe runs"'
    ]
    assert all(name.startswith("data:") for name in found["loaded"])
    first, second = found["said"]
    assert re.fullmatch(r"slice [2-9] of \d+", first)
    assert second == f"slice 1 of {first.split()[-1]}"
    assert found["moved"][:6] == [True, True, True, True, True, True]
    assert found["drawn"] > 5
    assert found["sizes"] == [[12, 14]] * 8
    # Nothing is wider than a phone.
    assert found["wide"] <= 0


@pytest.mark.slow
def test_a_browser_reports_what_is_wrong(page: Path, tmp_path: Path) -> None:
    """What the test above looks for would be seen."""
    text = page.read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    _, console = probed(bad, tmp_path, 800)
    assert any("Content Security Policy" in line for line in console)
