from __future__ import annotations

from pathlib import Path

import torch

from egcnn.data import open_dataset
from egcnn.data.phantom import write_brats
from egcnn.training import plan
from egcnn.training.batches import CaseData, Draw, SeededSampler

from ..tolerances import REORDERED


def test_sampler_shares_every_case_and_repeats_itself() -> None:
    whole = list(SeededSampler(7, seed=5, batch_size=6))
    assert sorted(draw.case for draw in whole) == list(range(7))
    assert len({draw.augmentation for draw in whole} | {draw.noise for draw in whole}) == 14
    assert [draw.weight for draw in whole] == [1 / 6] * 6 + [1]
    assert list(SeededSampler(7, seed=5, batch_size=6)) == whole
    parts = [list(SeededSampler(7, seed=5, batch_size=6, rank=r, replicas=3)) for r in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    # Device r takes places r, r + 3, ... of the same order; two places are left.
    taken = [parts[place % 3][place // 3] for place in range(9)]
    assert [draw[:3] for draw in taken[:7]] == [draw[:3] for draw in whole]
    assert [draw.weight for draw in taken] == [3 / 6] * 6 + [3, 0, 0]
    later = SeededSampler(7, seed=5, batch_size=6)
    later.set_epoch(1)
    assert [draw.case for draw in later] != [draw.case for draw in whole]


def test_sampler_resumes_within_an_epoch() -> None:
    sampler = SeededSampler(7, seed=5, batch_size=2, replicas=2)
    epochs = []
    for epoch in (3, 4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.resume(3, 2)
    for epoch, rest in ((3, epochs[0][2:]), (4, epochs[1])):
        sampler.set_epoch(epoch)
        assert list(sampler) == rest
        assert len(sampler) == 4


def test_patches_follow_their_seed_alone(tmp_path: Path) -> None:
    write_brats(tmp_path, 3, shape=(16, 24, 17), seed=3)
    brats = open_dataset(tmp_path)
    config = plan(brats, torch.device("cpu")).change({"patch": (16, 16, 16)})
    data = CaseData(config, brats, brats.cases[:2], brats.cases[2:])
    data.setup("fit")
    patches = data.train_dataloader().dataset
    one, other, again = (patches[Draw(0, seed, 0, 1.0)] for seed in (11, 12, 11))
    assert one["image"].shape == (4, 16, 16, 16)
    assert one["label"].shape == (1, 16, 16, 16)
    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], other["image"])


def test_volumes_are_whole_and_plain(tmp_path: Path) -> None:
    write_brats(tmp_path, 3, shape=(16, 24, 17), seed=3)
    brats = open_dataset(tmp_path)
    data = CaseData(plan(brats, torch.device("cpu")), brats, brats.cases[:2], brats.cases[2:])
    data.setup("fit")
    (item,) = data.val_dataloader()
    assert type(item["image"]) is torch.Tensor
    assert item["image"].shape == (4, 16, 24, 17)
    assert item["label"].shape == (1, 16, 24, 17)
    # z-scored over the brain, zero outside.
    inside = item["image"][0] != 0
    assert not inside.all()
    torch.testing.assert_close(
        item["image"][0][inside].mean(), torch.tensor(0.0), atol=REORDERED, rtol=0
    )
