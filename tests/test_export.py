"""Exported networks, run by torch alone, by ONNX Runtime and by MONAI, against the original."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import egcnn
from egcnn.checkpoint import KEY, Trained, description, load
from egcnn.data import BRATS, read_cases, write_volume
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError
from egcnn.export import export, export_program, trained_program, write_onnx
from egcnn.inference import predict_case
from egcnn.nn import EGCNN, NetworkSettings, Segmentation, SegNet, build_network
from egcnn.regions import Regions

from .tolerances import BY_SUM, HEADER, REORDERED

CLASSES = Regions(("background", "organ", "tumour"), ((0,), (1,), (3,)), "softmax")
TURNED = np.array([[0, 0, 1.6, -30], [-0.9, 0, 0, 11], [0, 1.3, 0, 5], [0, 0, 0, 1]])
SMALL = {"filters": 4, "blocks_down": (1, 1), "blocks_up": (1,)}
#: Backbones with variants of the edge stream, and regions: each value at least once.
VARIANTS = {
    "segnet": ({"gate": "channel", "head": "sobel", "edges": "region", "residual": "none"}, BRATS),
    "unet": ({"gate": "voxel", "head": "linear", "edges": "union", "residual": "block"}, BRATS),
    "vnet": ({"gate": "voxel", "head": "sobel", "edges": "union", "residual": "conv"}, CLASSES),
}


def shaken(network: nn.Module) -> nn.Module:
    """A network of which every weight counts: the fusion is 0 at first."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return network.eval()


def trained(backbone: str = "segnet", **changes: Any) -> Trained:
    options, regions = VARIANTS[backbone]
    settings = NetworkSettings().change({**SMALL, **options, "backbone.name": backbone, **changes})
    network = build_network(settings, 2, len(regions), exclusive=regions.exclusive)
    return Trained(
        network=shaken(network),
        settings=settings,
        preprocessing=PreprocessingSettings((16, 24, 8), (1.0, 1.5, 2.0)),
        regions=regions,
        modalities=("t1", "flair"),
        provenance={"layout": "brats", "loss": float("nan")},
    )


def outputs(network: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = network(image)
    return tuple(found) if isinstance(found, Segmentation) else (found,)


def images(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


def assert_same(found: Any, expected: tuple[Tensor, ...], tolerance: float = BY_SUM) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def check_paths(file: Path) -> None:
    """Check that a file does not name the folders of the code that made it, and their owner."""
    content = file.read_bytes()
    for package in (egcnn, torch):
        folder = Path(package.__file__ or "").parent
        assert str(folder).encode() not in content


@pytest.fixture(
    scope="module",
    params=["vnet", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("segnet", "unet"))],
)
def exported(request: pytest.FixtureRequest) -> tuple[Trained, ExportedProgram]:
    """A network and its program, which takes seconds to make."""
    torch.manual_seed(0)
    whole = trained(request.param)
    return whole, trained_program(whole, edges=True)


def test_a_program_computes_the_same(exported: tuple[Trained, ExportedProgram]) -> None:
    whole, program = exported
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("conv3d" in target for target in targets)
    assert not any("egcnn" in target for target in targets)
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)
    for image in images((1, 2, 16, 16, 16), (3, 2, 24, 16, 40)):
        assert_same(program.module()(image), outputs(whole.network, image))
    assert not whole.network.training
    assert all(parameter.requires_grad for parameter in whole.network.parameters())


def test_a_program_of_the_backbone_alone_and_of_the_logits_alone() -> None:
    (image,) = images((2, 2, 8, 8, 8))
    for whole in (trained(edge=False), trained()):
        program = export_program(whole.network, 2, (8, 8, 8))
        found = program.module()(image)
        assert isinstance(found, Tensor)
        assert_same([found], outputs(whole.network, image)[:1])


def test_thin_volumes_stay_free() -> None:
    """At two voxels the network in training pads, which would fix the sizes of a program."""
    network = shaken(SegNet(1, 2, filters=2, blocks_down=(1, 1), blocks_up=(1,)))
    program = export_program(network, 1, (4, 6, 8), multiple=2)
    for image in images((1, 1, 4, 4, 4), (1, 1, 4, 10, 6)):
        assert_same([program.module()(image)], outputs(network, image))


def test_a_program_of_a_foreign_network() -> None:
    from monai.networks.nets import BasicUNet

    inner = BasicUNet(in_channels=2, out_channels=3, features=(4, 4, 8, 8, 16, 4))
    network = shaken(EGCNN(inner, example=(1, 2, 32, 32, 32)))
    program = export_program(network, 2, (32, 16, 32), edges=True)
    (image,) = images((1, 2, 32, 16, 32))
    # A program interpolates before its gates, and a logarithm amplifies the head's roundings.
    assert_same(program.module()(image), outputs(network, image), REORDERED)


@pytest.mark.slow
def test_a_program_runs_without_this_package(tmp_path: Path) -> None:
    whole = trained("unet")
    export(whole, tmp_path / "a.pt2", edges=True)
    check_paths(tmp_path / "a.pt2")
    (image,) = images((1, 2, 24, 16, 32))
    torch.save((image, *outputs(whole.network, image)), tmp_path / "expected.pt")
    code = f"""
import json, sys
sys.modules["egcnn"] = None
import torch
extra = {{"{KEY}": ""}}
program = torch.export.load("a.pt2", extra_files=extra)
image, *expected = torch.load("expected.pt")
for one, other in zip(program.module()(image), expected, strict=True):
    torch.testing.assert_close(one, other, rtol={BY_SUM}, atol={BY_SUM})
print(extra["{KEY}"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["regions"] == BRATS.to_dict()
    assert described["provenance"]["loss"] is None


@pytest.mark.slow
@pytest.mark.thorough
def test_onnx(exported: tuple[Trained, ExportedProgram], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    whole, program = exported
    write_onnx(program, tmp_path / "a.onnx", description(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    check_paths(tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 2, "8*depth", "8*height", "8*width"])
    assert [output.name for output in session.get_outputs()] == ["logits", "edge_logits"]
    described = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert described["preprocessing"] == whole.preprocessing.to_dict()
    assert described["regions"] == whole.regions.to_dict()
    assert described["modalities"] == ["t1", "flair"]
    for values in images((1, 2, 16, 16, 16), (3, 2, 24, 16, 40)):
        found = [torch.from_numpy(part) for part in session.run(None, {"image": values.numpy()})]
        assert_same(found, outputs(whole.network, values), REORDERED)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, torch)
    monkeypatch.setitem(sys.modules, package, None)
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(InputError, match=rf"{package} is not installed; expected pip install"):
        write_onnx(program, tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("name", "edge", "edges", "says"),
    [
        ("a.pth", True, False, r"a\.pth: suffix '\.pth'; expected \.pt2, \.onnx or \.safetensors"),
        ("a.pt2", False, True, "the network has no edge stream"),
        ("a.safetensors", True, True, "holds the whole network anyway; expected .pt2 or .onnx"),
        ("a", True, True, "holds the whole network anyway"),
    ],
)
def test_what_cannot_be_exported(
    tmp_path: Path, name: str, edge: bool, edges: bool, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        export(trained(edge=edge), tmp_path / name, edges=edges)
    assert not list(tmp_path.iterdir())


def scans(folder: Path, modalities: int) -> None:
    """A case of noise whose axes are permuted and mirrored, anisotropic."""
    generator = np.random.default_rng(0)
    for number in range(modalities):
        volume = generator.normal(300, 100, (23, 19, 29)).astype(np.float32)
        volume[:4] = 0
        write_volume(volume, TURNED, folder / f"case_{number:04}.nii.gz")


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("segnet", PreprocessingSettings((16, 24, 8), (1.0, 1.5, 2.0))),
        ("vnet", PreprocessingSettings((16, 16, 16), (1.1, 1.2, 1.3), "ct")),
        ("unet", PreprocessingSettings((16, 16, 16), None)),
    ],
)
def test_a_bundle_predicts_the_same(
    tmp_path: Path, backbone: str, settings: PreprocessingSettings
) -> None:
    pytest.importorskip("ignite")
    from monai import bundle

    whole = replace(trained(backbone), preprocessing=settings)
    scans(tmp_path / "scans", 2)
    (case,) = read_cases(tmp_path / "scans", 2)
    expected = predict_case(whole, case, precision="32-true").labels
    assert len(np.unique(expected)) > 1

    export(whole, tmp_path / "bundle")
    config = tmp_path / "bundle/configs/inference.json"
    bundle.run(
        config_file=str(config),
        bundle_root=str(tmp_path / "bundle"),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case.nii.gz"]
    found = nib.load(tmp_path / "out/case.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    np.testing.assert_allclose(found.affine, TURNED, atol=HEADER)
    # Shapes and channels as metadata.json has them.
    bundle.verify_net_in_out(
        "network_def",
        meta_file=str(config.with_name("metadata.json")),
        config_file=str(config),
        device="cpu",
    )


def test_what_a_bundle_holds(tmp_path: Path) -> None:
    export(trained(), tmp_path / "brain")
    files = {path.relative_to(tmp_path / "brain").as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.pt",
    }
    assert "No license has been stated" in (tmp_path / "brain/LICENSE").read_text()
    told = json.loads((tmp_path / "brain/configs/metadata.json").read_text())
    # Required by the schema that it names.
    assert {
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright"),
        "network_data_format",
    } <= set(told)
    for tensors in told["network_data_format"].values():
        for tensor in tensors.values():
            assert {
                *("type", "format", "num_channels", "spatial_shape", "dtype", "value_range"),
            } <= set(tensor)
    labels = told["network_data_format"]["post_processed_outputs"]["pred"]["channel_def"]
    assert labels == {"0": "no region", "1": "WT, TC", "2": "WT", "4": "WT, TC, ET"}
    with pytest.raises(InputError, match=r"brain: is there already; expected a new or an empty"):
        export(trained(), tmp_path / "brain")
    assert list(tmp_path.iterdir()) == [tmp_path / "brain"]


@pytest.mark.parametrize("name", ["$print('ran')", "@network", "%model.json"])
def test_a_bundle_has_no_name_that_is_code(tmp_path: Path, name: str) -> None:
    for whole in (
        replace(trained(), modalities=("t1", name)),
        replace(trained(), regions=replace(BRATS, names=("WT", name, "ET"))),
    ):
        with pytest.raises(InputError, match="by which MONAI knows code"):
            export(whole, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.safetensors", "A.SafeTensors"])
def test_safetensors(tmp_path: Path, name: str) -> None:
    pytest.importorskip("safetensors")
    whole = trained()
    export(whole, tmp_path / name)
    (image,) = images((1, 2, 9, 7, 5))
    again = load(tmp_path / name).network
    assert_same(outputs(again, image), outputs(whole.network, image), 0)
