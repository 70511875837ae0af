"""The trainer for nnU-Net: its network's outputs, its loss, and a run of nnU-Net's commands."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

import egcnn.nnunet
from egcnn.data.phantom import write_phantoms
from egcnn.errors import InputError
from egcnn.losses import EGCNNLoss, LossSettings
from egcnn.nn import EdgeStreamSettings
from egcnn.regions import Regions

from .tolerances import REORDERED

TRAINER = egcnn.nnunet.FOLDER / "nnUNetTrainerEGCNN.py"
INSTALLED = importlib.util.find_spec("nnunetv2") is not None


class Decoder(nn.Module):
    """Like nnU-Net's: logits at each resolution, finest first, or the finest alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.deep_supervision = True
        self.up = nn.ModuleList(nn.ConvTranspose3d(n, n // 2, 2, 2) for n in (16, 8))
        self.heads = nn.ModuleList(nn.Conv3d(n, classes, 1) for n in (8, 4))

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        x, outputs = skips[-1], []
        for up, head, skip in zip(self.up, self.heads, skips[-2::-1], strict=True):
            x = up(x) + skip
            outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class Planned(nn.Module):
    """Like nnU-Net's networks: an encoder of three resolutions and a decoder."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 4, 8, 16)
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv3d(widths[i], widths[i + 1], 3, min(i, 1) + 1, 1), nn.LeakyReLU())
            for i in range(3)
        )
        self.decoder = Decoder(classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return self.decoder(skips)


class Base:
    """What the trainer uses of nnU-Net's."""

    enable_deep_supervision = True

    def __init__(self, labels: Any) -> None:
        self.label_manager = labels
        self.plans_manager = SimpleNamespace(plans={})

    def initialize(self) -> None:
        self.network = self.build_network_architecture(self.plans_manager, PLANNED, 2, 3)
        self.loss = self._build_loss()

    @staticmethod
    def build_network_architecture(
        plans: Any, planned: Any, inputs: int, outputs: int, enable_deep_supervision: bool = True
    ) -> nn.Module:
        network = Planned(inputs, outputs)
        network.decoder.deep_supervision = enable_deep_supervision
        return network

    def _build_loss(self) -> nn.Module:
        return DeepLoss()


class DeepLoss(nn.Module):
    """Stands in for nnU-Net's: zero, and keeps what it was called with."""

    def forward(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        self.called = outputs, targets
        return 1 + 0 * sum(output.mean() for output in outputs)


PLANNED = SimpleNamespace(pool_op_kernel_sizes=[[1, 1, 1], [2, 2, 2], [2, 2, 2]])
CLASSES = SimpleNamespace(has_regions=False, all_labels=[0, 1, 2], ignore_label=None)
IGNORING = SimpleNamespace(has_regions=False, all_labels=[0, 1, 2], ignore_label=3)
NESTED = SimpleNamespace(
    has_regions=True, all_regions=[(1, 2, 3), (2, 3), 3], all_labels=[0, 1, 2, 3], ignore_label=4
)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The trainer's module, on a base class that stands in for nnU-Net's."""
    name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        stand_in = ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    sys.modules[name].nnUNetTrainer = Base  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("trainers", TRAINER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_trainer_is_under_60_lines_and_alone_in_its_folder() -> None:
    """nnU-Net imports all modules there under their names alone, before others of these names."""
    assert len(TRAINER.read_text(encoding="utf-8").splitlines()) < 60
    found = {module.name for module in pkgutil.iter_modules([str(egcnn.nnunet.FOLDER)])}
    assert found == {TRAINER.stem}


def test_the_network_returns_what_nnunet_takes(trainers: ModuleType) -> None:
    trainer = trainers.nnUNetTrainerEGCNN(CLASSES)
    trainer.initialize()
    network, x = trainer.network.eval(), torch.randn(2, 2, 8, 12, 8)
    with torch.no_grad():
        *supervised, edge_logits = network(x)
        assert [tuple(output.shape[2:]) for output in supervised] == [(8, 12, 8), (4, 6, 4)]
        assert edge_logits.shape == supervised[0].shape
        # The fusion is initially the identity.
        for output, expected in zip(supervised, network.backbone(x), strict=True):
            assert torch.equal(output, expected)
        network.decoder.deep_supervision = False
        assert torch.equal(network(x), supervised[0])


def test_prediction_builds_the_network_that_was_trained(trainers: ModuleType) -> None:
    """From the plans beside the weights, whatever the class's settings are by then."""

    class Voxel(trainers.nnUNetTrainerEGCNN):  # type: ignore[name-defined,misc]
        edge_stream = EdgeStreamSettings(gate="voxel", channels=(6,))

    trainer = Voxel(NESTED)
    trainer.initialize()
    plans = SimpleNamespace(plans=json.loads(json.dumps(trainer.plans_manager.plans)))
    build = trainers.nnUNetTrainerEGCNN.build_network_architecture
    network = build(plans, PLANNED, 2, 3, enable_deep_supervision=False).eval()
    network.load_state_dict(trainer.network.state_dict())
    assert network.edge_stream.settings == Voxel.edge_stream
    assert network.edge_stream.head.exclusive is False
    x = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x), trainer.network.eval()(x)[0])


def test_compiles_in_both_modes(trainers: ModuleType) -> None:
    torch._dynamo.reset()
    trainer = trainers.nnUNetTrainerEGCNN(CLASSES)
    trainer.initialize()
    network, x = trainer.network.eval(), torch.randn(1, 2, 8, 8, 8)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for enabled in (True, False, True):
            compiled._orig_mod.decoder.deep_supervision = enabled  # as nnU-Net does it
            torch.testing.assert_close(compiled(x), network(x), atol=REORDERED, rtol=REORDERED)


def _labels(values: int) -> Tensor:
    labels = torch.zeros(2, 1, 8, 12, 8)
    for value in range(1, values):
        labels[:, :, value:6, 2 * value : 10, 1:7] = value
    return labels


@pytest.mark.parametrize("manager", [CLASSES, IGNORING, NESTED])
@pytest.mark.parametrize("edges", ["region", "union"])
def test_loss_is_nnunets_and_that_of_edges_and_consistency(
    trainers: ModuleType, manager: Any, edges: Any
) -> None:
    class Trainer(trainers.nnUNetTrainerEGCNN):  # type: ignore[name-defined,misc]
        edge_stream = EdgeStreamSettings(edges=edges)
        losses = LossSettings(semantic_weight=3.0, consistency_weight=0.5, edge_weight=2.0)

    trainer = Trainer(manager)
    trainer.initialize()
    labels = _labels(len(manager.all_labels) + (manager.ignore_label is not None))
    targets = [labels, labels[..., ::2, ::2, ::2]]
    activation: Any = "sigmoid" if manager.has_regions else "softmax"
    values = manager.all_regions if manager.has_regions else manager.all_labels
    values = tuple(value if isinstance(value, tuple) else (value,) for value in values)
    regions = Regions(("x", "y", "z"), values, activation, manager.ignore_label)
    if manager.has_regions:  # as nnU-Net converts them, the voxels to ignore last
        masks = regions.masks(labels.long()), labels == manager.ignore_label
        targets = [torch.cat([mask.bool() for mask in masks], 1)] * 2
    outputs = trainer.network(torch.randn(2, 2, 8, 12, 8))
    torch.manual_seed(5)
    loss = trainer.loss(outputs, targets)

    torch.manual_seed(5)
    terms = EGCNNLoss(regions)((outputs[0], outputs[-1]), labels.long())
    expected = 3 + 0.5 * terms["consistency"] + 2 * terms["edge"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    supervised, seen = trainer.loss.semantic.called
    assert all(a is b for a, b in zip(supervised, outputs[:-1], strict=True))
    assert seen is targets
    loss.backward()
    assert all(p.grad is not None for p in trainer.network.edge_stream.parameters())


def test_mixed_precision(trainers: ModuleType) -> None:
    trainer = trainers.nnUNetTrainerEGCNN(CLASSES)
    trainer.initialize()
    labels = _labels(3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = trainer.network(torch.randn(2, 2, 8, 12, 8))
        loss = trainer.loss(outputs, [labels, labels])
    assert outputs[0].dtype == torch.bfloat16
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in trainer.network.edge_stream.parameters())


def test_every_parameter_has_a_gradient_as_ddp_demands(trainers: ModuleType) -> None:
    trainer = trainers.nnUNetTrainerEGCNN(CLASSES)
    trainer.initialize()
    labels = _labels(3)

    def train_and_validate() -> None:
        network = nn.parallel.DistributedDataParallel(trainer.network)
        for _ in range(2):  # the second complains about unused parameters of the first
            trainer.loss(network(torch.randn(2, 2, 8, 12, 8)), [labels, labels]).backward()
        network.module.decoder.deep_supervision = False  # as nnU-Net does it
        assert network(torch.randn(1, 2, 8, 12, 8)).shape == (1, 3, 8, 12, 8)

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        # In a function: if DDP outlives the group, it ends the group's threads while it holds the
        # interpreter's lock, which they may wait for.
        train_and_validate()
    finally:
        distributed.destroy_process_group()


def test_rejections(trainers: ModuleType) -> None:
    trainer = trainers.nnUNetTrainerEGCNN(CLASSES)
    trainer.initialize()
    flat = SimpleNamespace(pool_op_kernel_sizes=[[1, 1], [2, 2]])
    with pytest.raises(InputError, match="the configuration is 2D; expected a 3D one"):
        trainer.build_network_architecture(trainer.plans_manager, flat, 1, 2)
    trainer.enable_deep_supervision = False
    with pytest.raises(InputError, match="enable_deep_supervision is False; expected True"):
        trainer.initialize()


PAGE = Path(__file__).resolve().parents[1] / "docs" / "nnunet.md"


def documented_trainer() -> str:
    """The page's trainer of one's own."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall("^```python[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(block)


def test_the_documented_trainer_is_found() -> None:
    assert "class nnUNetTrainerEGCNNShort(nnUNetTrainerEGCNN):" in documented_trainer()


def test_the_documented_command_names_the_folder(tmp_path: Path) -> None:
    (line,) = re.findall("^export nnUNet_extTrainer=.*", PAGE.read_text(encoding="utf-8"), re.M)
    line = line.replace("$(python ", f"$({shlex.quote(sys.executable)} ")
    environment = {**os.environ, "PYTHONPATH": str(Path(egcnn.__file__).parents[1])}
    script = f'{line}; printf %s "$nnUNet_extTrainer"'
    # Elsewhere than in the checkout, which `python -c` would import first.
    found = subprocess.check_output(["sh", "-c", script], env=environment, cwd=tmp_path)
    assert found == os.fsencode(egcnn.nnunet.FOLDER)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs pip install '.[nnunet]'")
def test_nnunet_trains_and_predicts(tmp_path: Path) -> None:
    """Regions of four modalities: plan, train an epoch, validate, and predict two cases."""
    dataset = tmp_path / "raw" / "Dataset999_Phantom"
    for case in write_phantoms("nnunet", dataset, 5, (32, 32, 32), seed=1):
        assert case.label is not None
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    # The documented one, with an iteration of each kind.
    block = documented_trainer()
    short = re.sub(r"(self\.num_\w+ = )\d+", r"\g<1>1", block)
    (trainers / "short.py").write_text(short, encoding="utf-8")
    environment = {
        **os.environ,
        **{f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": os.pathsep.join([str(egcnn.nnunet.FOLDER), str(trainers)]),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "OMP_WAIT_POLICY": "passive",  # it has a thread per core, whatever else runs
        "PYTHONPATH": str(Path(egcnn.__file__).resolve().parents[1]),
    }

    def run(command: str, *arguments: str) -> None:
        program = shutil.which(f"nnUNetv2_{command}", path=sysconfig.get_path("scripts"))
        assert program is not None
        done = subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    run("plan_and_preprocess", "-d", "999", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    name = "nnUNetTrainerEGCNNShort"
    run("train", "999", "3d_fullres", "0", "-tr", name, "-device", "cpu")
    images, output = tmp_path / "images", tmp_path / "predictions"
    images.mkdir()
    for path in (dataset / "imagesTr").glob("PHANTOM_00[01]_*"):
        shutil.copy(path, images)
    options = ("-d", "999", "-c", "3d_fullres", "-f", "0", "-tr", name, "-device", "cpu")
    workers = ("--disable_tta", "-npp", "1", "-nps", "1")
    run("predict", "-i", str(images), "-o", str(output), *options, *workers)
    for case in ("PHANTOM_000", "PHANTOM_001"):
        predicted = np.asarray(nib.load(output / f"{case}.nii.gz").dataobj)
        assert predicted.shape == (32, 32, 32)
        assert set(np.unique(predicted)) <= {0, 1, 2, 3}
