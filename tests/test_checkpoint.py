from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from egcnn import safetensors
from egcnn.checkpoint import FORMAT, KEY, Trained, load, save
from egcnn.data import BRATS
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError
from egcnn.nn import (
    EGCNN,
    BackboneSettings,
    EdgeStreamSettings,
    NetworkSettings,
    SegNet,
    build_network,
)
from egcnn.regions import Regions

from .tolerances import BY_SUM

SMALL = NetworkSettings(BackboneSettings(filters=4, blocks_down=(1, 1), blocks_up=(1,)))


def trained(settings: NetworkSettings = SMALL, regions: Regions = BRATS) -> Trained:
    return Trained(
        network=build_network(settings, 2, len(regions)).eval(),
        settings=settings,
        preprocessing=PreprocessingSettings((16, 24, 8), (1.0, 1.5, 2.0)),
        regions=regions,
        modalities=("t1", "flair"),
        provenance={"layout": "brats"},
    )


@pytest.mark.parametrize("edge", [True, False])
def test_a_network_comes_back_as_it_was_saved(tmp_path: Path, edge: bool) -> None:
    before = trained(SMALL.change({"edge": edge, "gate": "voxel"}))
    save(tmp_path / "a.ckpt", before)
    after = load(tmp_path / "a.ckpt")
    assert isinstance(after.network, EGCNN if edge else SegNet)
    assert after.settings == before.settings
    assert after.regions == BRATS
    assert (after.modalities, after.preprocessing) == (before.modalities, before.preprocessing)
    assert after.provenance["layout"] == "brats"
    assert after.provenance["versions"]["torch"] == torch.__version__
    assert not after.network.training
    image = torch.randn(1, 2, 9, 7, 5)
    with torch.no_grad():
        one, other = before.network(image), after.network(image)
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_native_spacing_is_kept(tmp_path: Path) -> None:
    native = PreprocessingSettings((16, 24, 8), None)
    save(tmp_path / "a.ckpt", replace(trained(), preprocessing=native))
    assert load(tmp_path / "a.ckpt").preprocessing == native


def test_unknown_backbone() -> None:
    with pytest.raises(
        InputError, match=r"backbone: 'resnet' is unknown; expected one of unet, vnet"
    ):
        build_network(SMALL.change({"backbone.name": "resnet"}), 2, 3)


def test_format_3_is_read() -> None:
    """A file of version 0.1.0, whose flat entries name every option that was not the default."""
    old = load(Path(__file__).parent / "fixtures" / "format3.ckpt")
    assert old.settings == NetworkSettings(
        BackboneSettings("unet", filters=2, blocks_down=(1, 1), blocks_up=(1,)),
        edge_stream=EdgeStreamSettings(
            "voxel",
            "relu_sigmoid",
            3,
            residual="conv",
            start="encoder",
            head="linear",
            edges="union",
        ),
    )
    assert old.preprocessing == PreprocessingSettings((16, 24, 8), (1.0, 1.5, 2.0))
    assert (old.modalities, old.regions) == (("t1", "flair"), BRATS)
    assert old.provenance["layout"] == "brats"
    # Outputs of that version.
    image = torch.linspace(-1, 1, 2 * 6 * 5 * 4).reshape(1, 2, 6, 5, 4)
    with torch.no_grad():
        logits, edge_logits = old.network(image)
    found = [*logits.mean((0, 2, 3, 4)).tolist(), edge_logits.mean().item()]
    assert found == pytest.approx([-0.412313, 0.013895, 1.001868, -2.547932], abs=BY_SUM)


def damaged(path: Path, how: str) -> None:
    save(path, trained())
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no checkpoint")
    elif how == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    elif how == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        data = torch.load(path, weights_only=True)
        if how == "format":
            data[KEY]["format"] = FORMAT + 1
        torch.save(data, path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "cannot be read as a checkpoint"),
        ("empty", "cannot be read as a checkpoint"),
        ("text", "cannot be read as a checkpoint"),
        ("foreign", "was not written by egcnn"),
        ("tensor", "was not written by egcnn"),
        ("format", f"format version {FORMAT + 1}"),
    ],
)
def test_what_is_no_checkpoint_of_ours(tmp_path: Path, how: str, says: str) -> None:
    path = tmp_path / "bad.ckpt"
    damaged(path, how)
    with pytest.raises(InputError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.safetensors", "A.SafeTensors"])
def test_safetensors_hold_the_same(tmp_path: Path, name: str) -> None:
    library = pytest.importorskip("safetensors")
    before = trained()
    save(tmp_path / name, before)
    with library.safe_open(tmp_path / name, framework="pt") as file:
        assert set(file.keys()) == set(before.network.state_dict())
    after = load(tmp_path / name)
    assert (after.settings, after.regions) == (before.settings, before.regions)
    assert (after.modalities, after.preprocessing) == (before.modalities, before.preprocessing)
    assert after.provenance["layout"] == "brats"
    assert len(after.provenance["checkpoint"]) == 64
    weights = after.network.state_dict()
    for name, value in before.network.state_dict().items():
        assert torch.equal(weights[name], value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("text", "cannot be read as a safetensors file"),
        ("truncated", "cannot be read as a safetensors file"),
        ("flipped", "its checksum is wrong"),
        ("foreign", "was not written by egcnn"),
        ("list", "was not written by egcnn"),
        ("format", f"format version {FORMAT + 1}"),
        ("regions", "is damaged: .* expected every name once"),
        ("weight", "weights, such as 'fusion.bias', are missing"),
        ("missing", "does not exist"),
    ],
)
def test_what_is_no_safetensors_of_ours(tmp_path: Path, how: str, says: str) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "bad.safetensors"
    whole = trained()
    described, weights = whole.entry(), dict(whole.network.state_dict())
    if how == "format":
        described["format"] = FORMAT + 1
    elif how == "regions":
        described["regions"]["names"] = ["WT", "TC", "TC"]
    elif how == "weight":
        del weights["fusion.bias"]
    if how == "foreign":
        torch_files.save_file({"weight": torch.zeros(3)}, path)
    elif how == "text":
        path.write_text("no weights")
    elif how != "missing":
        safetensors.write(path, weights, json.dumps([1] if how == "list" else described))
    content = bytearray(path.read_bytes()) if path.exists() else bytearray()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "flipped":
        content[-3] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.safetensors", "A.SafeTensors"])
def test_safetensors_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"not installed; expected pip install '\.\[export\]' in"):
        save(tmp_path / name, trained())
    assert not list(tmp_path.iterdir())


def altered(path: Path, *place: str | int, value: Any = None) -> None:
    """Write a checkpoint with an entry of another value, or (None) without it."""
    save(path, trained())
    data = inner = torch.load(path, weights_only=True)
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    torch.save(data, path)


NAN = float("nan")
WEIGHT = "network.backbone.head.1.weight"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((KEY, "preprocessing"), None, "expected an object"),
        ((KEY, "preprocessing", "patch"), None, "patch is missing"),
        ((KEY, "preprocessing", "patch"), "segnet", "patch: 'segnet'; expected 3 integers"),
        ((KEY, "preprocessing", "patch"), [16, 2**70, 8], "patch: .*; expected at most 32767"),
        ((KEY, "preprocessing", "spacing"), [1.0, NAN, 1.0], "spacing: .*; expected 3 finite"),
        ((KEY, "network", "colour"), "red", "unknown entries 'colour'"),
        ((KEY, "network", "edge"), "yes", "edge: 'yes'; expected true or false"),
        ((KEY, "network", "backbone", "filters"), 2**70, "filters: .*; expected at most 4096"),
        ((KEY, "network", "backbone", "filters"), 4096, "do not fit each other.* has shape"),
        ((KEY, "network", "backbone", "blocks_down"), [1, 2**70], "blocks_down: .*; expected at"),
        ((KEY, "network", "backbone", "blocks_down"), [64, 64], "weights, such as .*, are missing"),
        ((KEY, "network", "edge_stream", "channels"), 2**40, "channels: .*; expected at most"),
        ((KEY, "modalities"), "t1", "modalities: 't1'; expected texts"),
        ((KEY, "modalities"), ["t1"], "has shape .*, as segnet with 1 modalities and 3 regions"),
        ((KEY, "modalities"), [], "in_channels is 0"),
        ((KEY, "regions"), None, "expected an object that has 'names'"),
        ((KEY, "regions", "labels"), [[1, 2, 4], [1, 4], [NAN]], "labels: .*; expected lists"),
        ((KEY, "regions", "labels"), [[1, 2, 4], [1, 4], [4.5]], "labels: .*; expected lists"),
        ((KEY, "regions", "names"), ["WT", "TC", "TC"], "expected every name once"),
        ((KEY, "regions", "ignore_index"), True, "ignore_index: True; expected an integer"),
        ((KEY, "format"), torch.ones(2), "format version tensor"),
        ((KEY, "provenance"), [1], r"provenance: \[1\]; expected an object"),
        ((KEY, "provenance", "run"), torch.ones(2), "Tensor is not JSON"),
        ((KEY, "provenance", "run"), [1], r"run: \[1\]; expected an object or null"),
        ((KEY, "provenance", "run"), {"data": 3}, "data: 3; expected an object or null"),
        (("state_dict",), [1], r"state_dict: \[1\]; expected an object"),
        (("state_dict", WEIGHT), None, f"1 weights, such as '{WEIGHT[8:]}', are missing"),
        (("state_dict", WEIGHT), "x", "is a str of None; expected a dense tensor"),
        (("state_dict", WEIGHT), torch.full((3, 4, 1, 1, 1), NAN), "holds NaN or infinity"),
        (("state_dict", WEIGHT), torch.ones(3, 4, 1, 1, 1).to_sparse(), "expected a dense tensor"),
        (("state_dict", WEIGHT), torch.ones(1).expand(2**40), "do not fit each other"),
    ],
)
def test_entries_are_checked(tmp_path: Path, place: tuple[Any, ...], value: Any, says: str) -> None:
    altered(tmp_path / "bad.ckpt", *place, value=value)
    with pytest.raises(InputError, match=says) as caught:
        load(tmp_path / "bad.ckpt")
    assert str(caught.value).startswith(f"checkpoint: {tmp_path / 'bad.ckpt'} ")
    assert "\n" not in str(caught.value)


def shared(depth: int) -> list[Any]:
    """A list that would print as 2**depth numbers, and is small in a file."""
    value: list[Any] = [1, 1]
    for _ in range(depth - 1):
        value = [value, value]
    return value


@pytest.mark.parametrize("value", [10**500, shared(60)], ids=["long", "wide"])
def test_entries_that_cannot_be_printed(tmp_path: Path, value: Any) -> None:
    altered(tmp_path / "bad.ckpt", KEY, "preprocessing", "patch", value=value)
    with pytest.raises(InputError, match=r"patch: .*; expected 3 integers") as caught:
        load(tmp_path / "bad.ckpt")
    assert len(str(caught.value)) < 1000


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({KEY: {"format": FORMAT}, "state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_killed_worker_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death is reported wherever the program is, such as in torch.save."""

    def killed(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(RuntimeError, match="killed by signal"):
        save(tmp_path / "a.ckpt", trained())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "cannot be written: No space left"),
        (RuntimeError("[enforce fail at inline_container.cc]"), "is there room left on the disk"),
    ],
)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    path = tmp_path / "a.ckpt"
    save(path, trained())
    before = path.read_bytes()

    def full(data: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=says):
        save(path, trained())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
