from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from egcnn import machine
from egcnn.checkpoint import Trained
from egcnn.data import Case, read_image, write_volume
from egcnn.data.resampling import resample
from egcnn.data.transforms import PreprocessingSettings
from egcnn.errors import InputError
from egcnn.inference import (
    choose_device,
    default_precision,
    predict_case,
    predict_cases,
    training_flips,
    write_prediction,
)
from egcnn.nn import BackboneSettings, NetworkSettings, Segmentation, build_network
from egcnn.regions import Regions
from egcnn.windows import segment, window_size

from .tolerances import BY_SUM, HEADER, REORDERED

CLASSES = Regions(("background", "organ"), ((0,), (3,)), "softmax")
#: Axes permuted and mirrored, anisotropic, and far from the origin.
TURNED = np.array([[0, 0, 2.0, -30], [-0.7, 0, 0, 11], [0, 1.3, 0, 5], [0, 0, 0, 1]])
SHEARED = np.array([[0.9, 0.1, 0, 3], [-0.1, 0.9, 0.2, -7], [0, -0.2, 1.5, 2], [0, 0, 0, 1.0]])


class Threshold(nn.Module):
    """Organ where the normalised image is positive; its edge logits are the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Segmentation:
        z = 50 * x[:, :1] * self.weight
        return Segmentation(torch.cat([-z, z], 1), torch.cat([-x[:, :1], x[:, :1]], 1))


def threshold(spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0)) -> Trained:
    return Trained(
        network=Threshold(),
        settings=NetworkSettings(),
        preprocessing=PreprocessingSettings((16, 16, 16), spacing, "ct"),
        regions=CLASSES,
        modalities=("ct",),
    )


def ball(path: Path, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Write a bright ball of 9 mm in HU as NIfTI; returns its mask."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = nib.affines.apply_affine(affine, grid)
    middle = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    away = np.linalg.norm(points - middle, axis=-1)
    write_volume(np.clip((9 - away) * 100, -900, 900).astype(np.float32), affine, path)
    return away < 9


@pytest.mark.parametrize("weight", [float("nan"), 3e38])
def test_an_output_that_is_nan_is_no_segmentation(tmp_path: Path, weight: float) -> None:
    """Whether a weight is NaN or the features overflow."""
    ball(tmp_path / "ball.nii", (16, 16, 16), np.eye(4))
    trained = threshold()
    trained.network.weight.data.fill_(weight)  # type: ignore[union-attr,operator]
    with pytest.raises(InputError, match=r"ball\.nii: the network's output is NaN"):
        predict_case(trained, tmp_path / "ball.nii")


@pytest.mark.parametrize(
    ("affine", "spacing", "least"),
    [
        (np.eye(4), (1.0, 1.0, 1.0), 1.0),
        (TURNED, None, 1.0),
        (TURNED, (1.0, 1.0, 1.0), 0.97),
        (SHEARED, (1.0, 1.0, 1.0), 0.97),
        (np.diag([2.0, 2.0, 3.0, 1.0]), (1.0, 1.0, 1.0), 0.93),
    ],
    ids=["same", "turned", "turned, resampled", "sheared", "coarse"],
)
def test_prediction_lies_on_the_inputs_grid(
    tmp_path: Path,
    affine: np.ndarray,
    spacing: tuple[float, float, float] | None,
    least: float,
) -> None:
    shape = (23, 19, 29)
    truth = ball(tmp_path / "ball.nii.gz", shape, affine)
    found = predict_case(threshold(spacing), tmp_path / "ball.nii.gz", precision="32-true")
    assert found.labels.shape == shape
    assert found.labels.dtype == np.int16
    np.testing.assert_allclose(found.affine, affine, atol=HEADER)
    assert set(np.unique(found.labels)) == {0, 3}
    inside = found.labels == 3
    dice = 2 * (inside & truth).sum() / (inside.sum() + truth.sum())
    assert dice >= least
    assert found.probabilities.shape == (2, *shape)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=BY_SUM)
    assert found.edges is not None
    # The background's edge channel is the mirror image of the organ's and must not count.
    assert found.edges.shape == (1, *shape)
    assert found.edges[0][~truth].max() <= 0.51


def test_windows_cover_a_volume_without_seams(tmp_path: Path) -> None:
    truth = ball(tmp_path / "ball.nii.gz", (41, 37, 43), np.eye(4))
    found = predict_case(threshold(), tmp_path / "ball.nii.gz", overlap=0.25, precision="32-true")
    np.testing.assert_array_equal(found.labels == 3, truth)


def test_edges_of_an_earlier_prediction_do_not_stay(tmp_path: Path) -> None:
    ball(tmp_path / "ball.nii.gz", (9, 8, 7), np.eye(4))
    found = predict_case(threshold(), tmp_path / "ball.nii.gz", precision="32-true")
    write_prediction(found, tmp_path / "p", "ball", edges=True)
    assert (tmp_path / "p" / "ball_edges.nii.gz").is_file()
    write_prediction(found, tmp_path / "p", "ball")
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["ball.nii.gz"]


class Leaning(Threshold):
    """Adds to the logits the position along one axis of the window."""

    def __init__(self, axis: int, slope: float) -> None:
        super().__init__()
        self.axis, self.slope = axis, slope

    def forward(self, x: Tensor) -> Segmentation:
        places = torch.linspace(-1, 1, x.shape[self.axis + 2])
        lean = self.slope * places.reshape(-1, *[1] * (2 - self.axis)).expand_as(x[:, :1])
        z = x[:, :1] * self.weight + lean
        return Segmentation(torch.cat([-z, z], 1), torch.cat([-z, z], 1))


def leaning(axis: int, slope: float) -> Trained:
    return replace(threshold(None), network=Leaning(axis, slope))


def test_an_ensemble_averages_probabilities() -> None:
    image = MetaTensor(torch.randn(1, 9, 8, 7) * 300)
    members = [leaning(0, 1.0), leaning(2, -2.0)]
    alone = [predict_case(member, image, precision="32-true") for member in members]
    both = predict_case(members, image, precision="32-true")
    mean = np.mean([one.probabilities for one in alone], axis=0)
    np.testing.assert_allclose(both.probabilities, mean, atol=BY_SUM)
    edges = np.mean([one.edges for one in alone], axis=0)
    np.testing.assert_allclose(both.edges, edges, atol=BY_SUM)
    np.testing.assert_array_equal(both.labels == 3, mean[1] > 0.5)


def test_an_ensemble_agrees_on_what_it_predicts() -> None:
    image = MetaTensor(torch.randn(1, 4, 4, 4))
    with pytest.raises(InputError, match=r"checkpoints: preprocessing .*; expected the same"):
        predict_case([threshold(), threshold(None)], image)
    with pytest.raises(InputError, match="checkpoints: none"):
        predict_case([], image)


def test_flips_are_averaged() -> None:
    image = MetaTensor(torch.randn(1, 16, 8, 8) * 300)
    mirrored = MetaTensor(image.as_tensor().flip(1))
    one = predict_case(leaning(0, 2.0), image, precision="32-true")
    other = predict_case(leaning(0, 2.0), mirrored, precision="32-true")
    assert one.probabilities is not None
    assert other.probabilities is not None
    both = predict_case(leaning(0, 2.0), image, flips=(0,), precision="32-true")
    mean = (one.probabilities + other.probabilities[:, ::-1]) / 2
    np.testing.assert_allclose(both.probabilities, mean, atol=BY_SUM)
    # All 8 mirrorings: now no direction differs from its opposite.
    calls = []
    every = predict_case(
        leaning(0, 2.0),
        image,
        flips=(0, 1, 2),
        precision="32-true",
        progress=lambda done, total: calls.append((done, total)),
    )
    np.testing.assert_allclose(every.probabilities, mean, atol=BY_SUM)
    assert calls == [(1, 1)]
    with pytest.raises(InputError, match=r"flips: \(3,\); expected some of 0, 1, 2"):
        predict_case(threshold(), image, flips=(3,))


def test_flips_of_the_training() -> None:
    config = {"run": {"config": {"augmentation": {"flip_axes": [0, 2]}}}}
    assert training_flips(replace(threshold(), provenance=config)) == (0, 2)
    with pytest.raises(InputError, match="flips: the checkpoint does not say"):
        training_flips(threshold())
    for axes, flips in (([2, 0, 2], (0, 2)), ("abc", None), (3.5, None)):
        config["run"]["config"]["augmentation"]["flip_axes"] = axes  # type: ignore[assignment]
        changed = replace(threshold(), provenance=config)
        if flips is not None:
            assert training_flips(changed) == flips
            continue
        with pytest.raises(InputError, match="flips: the checkpoint does not say"):
            training_flips(changed)


@pytest.mark.parametrize("shape", [(40, 33, 35), (16, 16, 16), (5, 90, 17)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_windows_are_counted(shape: tuple[int, int, int], overlap: float) -> None:
    calls: list[tuple[int, int]] = []
    segment(
        threshold().network,
        torch.zeros(1, 1, *shape),
        CLASSES,
        (8, 8, 8),
        stride=8,
        overlap=overlap,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(number, len(calls)) for number in range(1, len(calls) + 1)]


#: Slice-first, with both codes, as KiTS has them, and turned.
KITS_AFFINE = np.array([[0, 0, -0.9, 100], [0, -0.9, 0, 90], [-3.0, 0, 0, 80], [0, 0, 0, 1]])


def test_files_keep_the_geometry_and_read_as_probabilities(tmp_path: Path) -> None:
    shape = (11, 27, 25)
    ball(tmp_path / "ball.nii.gz", shape, KITS_AFFINE)
    image = nib.load(tmp_path / "ball.nii.gz")
    image.set_qform(KITS_AFFINE, 1)
    image.set_sform(KITS_AFFINE, 2)
    nib.save(image, tmp_path / "ball.nii.gz")
    found = predict_case(threshold(), tmp_path / "ball.nii.gz", precision="32-true")
    folder = tmp_path / "p"
    write_prediction(found, folder, "ball", edges=True, probabilities=True)
    assert found.edges is not None
    kinds = {"": found.labels, "_edges": found.edges[0], "_probabilities": found.probabilities}
    for suffix, values in kinds.items():
        read = nib.load(folder / f"ball{suffix}.nii.gz")
        assert read.shape[:3] == shape
        for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            np.testing.assert_array_equal(read.header[name], image.header[name])
        np.testing.assert_array_equal(read.get_qform(), image.get_qform())
        assert nib.aff2axcodes(read.affine) == nib.aff2axcodes(image.affine)
        data = np.asanyarray(read.dataobj)
        if not suffix:
            assert set(np.unique(data)) == {0, 3}
            continue
        assert read.get_data_dtype() == np.uint8
        assert 0 <= data.min() <= data.max() <= 1
        expected = values if suffix == "_edges" else np.moveaxis(values, 0, 3)
        np.testing.assert_allclose(data, expected, atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(data >= 0.5, expected >= 0.5)
    assert len(list(folder.iterdir())) == 3
    write_prediction(found, folder, "ball")
    assert [path.name for path in folder.iterdir()] == ["ball.nii.gz"]


def test_probabilities_only_on_request(tmp_path: Path) -> None:
    ball(tmp_path / "ball.nii.gz", (9, 8, 7), np.eye(4))
    cases = [Case("ball", (tmp_path / "ball.nii.gz",))]
    for asked in (False, True):
        done = predict_cases(threshold(), cases, tmp_path / "p", probabilities=asked)
        ((_, prediction, _),) = done
        assert (prediction.probabilities is not None) == asked
        assert (tmp_path / "p" / "ball_probabilities.nii.gz").exists() == asked


def test_volume_smaller_than_a_window(tmp_path: Path) -> None:
    write_volume(np.array([[[100.0], [-200.0]]], np.float32), np.eye(4), tmp_path / "tiny.nii.gz")
    found = predict_case(threshold(), tmp_path / "tiny.nii.gz")
    np.testing.assert_array_equal(found.labels, [[[3], [0]]])


def test_predicting_uses_no_more_threads_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball(tmp_path / "ball.nii.gz", (9, 8, 7), np.eye(4))
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        predict_case(threshold(), tmp_path / "ball.nii.gz", precision="32-true")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_backbone_alone_has_no_edges() -> None:
    backbone = BackboneSettings(filters=4, blocks_down=(1, 1), blocks_up=(1,))
    network = build_network(NetworkSettings(backbone, edge=False), 1, 2).eval()
    probabilities, edges = segment(
        network, torch.randn(1, 1, 9, 8, 7), CLASSES, (16, 16, 16), stride=8
    )
    assert edges is None
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 9, 8, 7))


def test_meta_tensor_and_file_agree(tmp_path: Path) -> None:
    ball(tmp_path / "ball.nii.gz", (12, 13, 14), TURNED)
    image = read_image(tmp_path / "ball.nii.gz")
    before = image.clone()
    one = predict_case(threshold(), image)
    two = predict_case(threshold(), tmp_path / "ball.nii.gz")
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert torch.equal(image.as_tensor(), before.as_tensor())
    assert torch.equal(image.affine, before.affine)


def to_grid(volume: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...]) -> Tensor:
    return resample(volume, np.linalg.solve(source.numpy(), target.numpy()), shape)


def test_grid_back_of_a_ramp_is_exact() -> None:
    # Trilinear interpolation reproduces a linear function of the position in mm.
    shape = (7, 9, 8)
    fine = torch.tensor(SHEARED)
    coarse = fine @ torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)

    def ramp(affine: Tensor) -> Tensor:
        points = nib.affines.apply_affine(affine.numpy(), grid)
        return torch.as_tensor(points @ [1.0, -2.0, 0.5], dtype=torch.float32)[None]

    moved = to_grid(ramp(fine), fine, coarse, shape)
    torch.testing.assert_close(
        moved[:, :4, :5, :4], ramp(coarse)[:, :4, :5, :4], atol=REORDERED, rtol=0
    )


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((35, 50, 36), (40, 56, 40)),
        ((43, 59, 47), (48, 64, 48)),
        ((240, 240, 155), (40, 56, 40)),
        ((1, 1, 1), (8, 8, 8)),
    ],
)
def test_window_size(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    assert window_size(shape, (40, 56, 40), stride=8) == window


def test_number_of_modalities(tmp_path: Path) -> None:
    path = tmp_path / "two.nii.gz"
    write_volume(np.random.default_rng(0).normal(size=(5, 6, 7, 2)), np.eye(4), path)
    with pytest.raises(InputError, match=r"two\.nii\.gz.*2.*1"):
        predict_case(threshold(), path)
    with pytest.raises(InputError, match=r"image: shape \(2, 4, 4, 4\); .* M = 1 \(ct\)"):
        predict_case(threshold(), MetaTensor(torch.randn(2, 4, 4, 4)))


def test_options_are_checked() -> None:
    image = MetaTensor(torch.randn(1, 4, 4, 4))
    with pytest.raises(InputError, match="overlap: 1"):
        predict_case(threshold(), image, overlap=1.0)
    with pytest.raises(InputError, match="precision: 'double'"):
        predict_case(threshold(), image, precision="double")
    with pytest.raises(InputError, match="device: 'tpu' is unknown"):
        choose_device("tpu")
    with pytest.raises(InputError, match=r"torch sees .* CUDA devices here.*; expected auto.* cpu"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
    assert choose_device("cpu").type == "cpu"
    assert default_precision(torch.device("cpu")) in ("32-true", "bf16-mixed")
