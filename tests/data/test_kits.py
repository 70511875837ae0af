"""The KiTS 2019 layout as it is handed out, on small volumes and on the challenge's own masks."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from egcnn.checkpoint import Trained
from egcnn.data import KITS, open_dataset, read_cases, read_image, read_label, write_volume
from egcnn.data.transforms import PreprocessingSettings, preprocessing
from egcnn.errors import InputError
from egcnn.inference import predict_cases
from egcnn.nn import NetworkSettings
from egcnn.training import plan

#: Mean HU by label, as the tests paint them.
_HU = np.array([-100, 150, 400], np.int16)


class ByIntensity(nn.Module):
    """Kidney above 25 HU, tumour above 275 HU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return 50 * torch.cat([x - 0.025, x - 0.275], 1) * self.weight


def trained(spacing: tuple[float, float, float] | None) -> Trained:
    preprocessing = PreprocessingSettings((64, 64, 64), spacing, "ct")
    return Trained(ByIntensity(), NetworkSettings(), preprocessing, KITS, ("CT",))


def slices_first(thickness: float, size: float) -> np.ndarray:
    """The challenge's affine: downwards, backwards, leftwards."""
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = -size, -size, -thickness, 1
    return affine


def make(
    root: Path, name: str, dtype: type = np.uint8, *, label: bool = True, image: bool = True
) -> Path:
    folder = root / name
    labels = np.zeros((6, 12, 17), dtype)
    labels[1:5, 3:8, 2:9] = 1
    labels[2:4, 4:6, 3:6] = 2
    affine = slices_first(5, 0.9)
    if image:
        write_volume(_HU[labels], affine, folder / "imaging.nii.gz")
    if label:
        write_volume(labels, affine, folder / "segmentation.nii.gz")
    return folder


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("described", [False, True])
def test_as_handed_out(tmp_path: Path, below: str, described: bool) -> None:
    make(tmp_path / below, "case_00001", np.uint16)
    make(tmp_path / below, "case_00000")
    make(tmp_path / below, "case_00210", label=False)
    (tmp_path / below / "notes").mkdir()
    if described:
        (tmp_path / below / "kits.json").write_text('[{"case_id": "case_00000"}]')
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "kits"
    assert dataset.modalities == ("CT",)
    assert dataset.normalization == "ct"
    assert dataset.spacing == (1, 1, 1)
    assert dataset.regions == KITS
    assert [case.name for case in dataset.cases] == ["case_00000", "case_00001", "case_00210"]
    assert [case.label is not None for case in dataset.cases] == [True, True, False]
    for case in dataset.cases[:2]:
        labels = read_label(case, KITS)
        assert labels.dtype == torch.uint8
        assert labels.shape == read_image(case).shape == (1, 6, 12, 17)
        assert np.unique(labels).tolist() == [0, 1, 2]
        kidney, tumour = KITS.masks(labels.as_tensor()[None])[0]
        assert int(kidney.sum()) == 140
        assert int(tumour.sum()) == 12
        assert (kidney >= tumour).all()


def test_case_without_its_ct_is_named(tmp_path: Path) -> None:
    make(tmp_path, "case_00000")
    for name in ("case_00003", "case_00004"):
        make(tmp_path, name, image=False)
    with pytest.raises(
        InputError, match=r"case_00003: imaging\.nii\.gz is missing; .* \(1 more: egcnn inspect"
    ):
        open_dataset(tmp_path)


def test_a_single_case(tmp_path: Path) -> None:
    folder = make(tmp_path, "case_00210", label=False)
    (case,) = read_cases(folder)
    assert case.name == "case_00210"


def test_plan_is_the_papers(tmp_path: Path) -> None:
    folder = tmp_path / "case_00160"
    folder.mkdir()
    image = nib.Nifti1Image(np.zeros((252, 512, 796), np.uint8), slices_first(1, 0.45))
    nib.save(image, folder / "imaging.nii.gz")
    config = plan(open_dataset(tmp_path), torch.device("cpu"))
    assert config.preprocessing == PreprocessingSettings((176, 176, 176), (1, 1, 1), "ct")
    assert config.network.backbone.filters == 32


def test_intensities_are_thousands_of_hounsfield_units(tmp_path: Path) -> None:
    values = np.array([-2000, -1000, -100, 0, 400, 3000], np.int16)
    write_volume(values.reshape(6, 1, 1), np.eye(4), tmp_path / "case_00000/imaging.nii.gz")
    dataset = open_dataset(tmp_path)
    prepare = preprocessing(
        PreprocessingSettings((8, 8, 8), None, dataset.normalization), dataset.regions
    )
    image = prepare({"image": read_image(dataset.cases[0])})["image"]
    torch.testing.assert_close(image.as_tensor().flatten(), torch.tensor([-1, -1, -0.1, 0, 0.4, 1]))


def test_predictions_have_the_challenges_values_and_grid(tmp_path: Path) -> None:
    make(tmp_path / "data", "case_00000", np.uint16)
    (case,) = open_dataset(tmp_path).cases
    ((_, _, path),) = predict_cases(trained(None), [case], tmp_path / "out")
    written, truth = nib.load(path), nib.load(str(case.label))
    np.testing.assert_array_equal(written.get_fdata(), truth.get_fdata())
    np.testing.assert_array_equal(written.affine, truth.affine)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["case_00108"]
    + [pytest.param(name, marks=pytest.mark.thorough) for name in ("case_00144", "case_00045")],
)
def test_real_masks_there_and_back(shared_data: Path, tmp_path: Path, name: str) -> None:
    """CTs painted from the challenge's masks, through a network that reads the intensities.

    At 3 mm so that the volumes are small; a mirrored or permuted axis would leave nothing.
    """
    mask = shared_data / "kits19_masks/data" / name / "segmentation.nii.gz"
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    (folder / "segmentation.nii.gz").symlink_to(mask)
    stored = nib.load(mask)
    labels = np.asanyarray(stored.dataobj)
    write_volume(_HU[labels], stored.affine, folder / "imaging.nii.gz", stored.header)
    dataset = open_dataset(tmp_path)
    (case,) = dataset.cases
    predictions = predict_cases(trained((3, 3, 3)), [case], tmp_path / "out", overlap=0)
    ((_, prediction, path),) = predictions
    written = nib.load(path)
    assert written.shape == stored.shape
    np.testing.assert_array_equal(written.affine, stored.affine)
    for code in ("qform_code", "sform_code"):
        assert written.header[code] == stored.header[code]
    found = np.asanyarray(written.dataobj)
    np.testing.assert_array_equal(found, prediction.labels)
    assert set(np.unique(found)) <= {0, 1, 2}
    for region, least in zip(KITS.labels, (0.9, 0.85), strict=True):
        a, b = np.isin(found, region), np.isin(labels, region)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least
