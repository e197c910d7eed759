import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from dist_train.config.backbone import Preprocessing
from dist_train.data.loading.augment import centre_anchor, random_resized_crop, resized_sizes, ten_crops, uniforms

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def windows(n: int, height: int, width: int, seed: int = 0, epoch: int = 0):  # type: ignore[no-untyped-def]
    ids, epochs = np.arange(n), np.full(n, epoch)
    return random_resized_crop(seed, epochs, ids, np.full(n, height), np.full(n, width), SCALE, RATIO)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 100))
def test_windows_lie_inside_the_image(height: int, width: int, seed: int, epoch: int) -> None:
    w = windows(16, height, width, seed, epoch)
    assert (w.anchor >= 0).all() and (w.shape >= 1).all()
    assert (w.anchor + w.shape <= [height, width]).all()


def test_windows_have_torchvisions_distribution() -> None:
    n, height, width = 4000, 375, 500
    ours = windows(n, height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(n)])
    for mine, other in zip(np.hstack([ours.anchor, ours.shape]).T, theirs.T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
    assert abs(ours.flip.mean() - 0.5) < 0.03


def test_a_long_image_gets_torchvisions_central_window() -> None:
    w = windows(200, 20, 2000)
    fallback = w.shape[(w.shape[:, 0] == 20)]
    assert (fallback[:, 1] <= round(20 * 4 / 3)).all()


def test_windows_are_a_pure_function_of_seed_epoch_and_id() -> None:
    ids, epochs = np.array([5, 9, 7]), np.array([0, 3, 1])
    sizes = np.array([300, 400, 500])
    whole = random_resized_crop(7, epochs, ids, sizes, sizes, SCALE, RATIO)
    part = random_resized_crop(7, epochs[1:2], ids[1:2], sizes[1:2], sizes[1:2], SCALE, RATIO)
    assert np.array_equal(whole.anchor[1], part.anchor[0]) and np.array_equal(whole.shape[1], part.shape[0])
    draws = [uniforms(s, np.array([e]), np.array([i]), 4) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert len({d.tobytes() for d in draws}) == 8


def test_numbers_are_uniform_and_independent() -> None:
    u = uniforms(0, np.zeros(20000, np.int64), np.arange(20000), 4)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900))
def test_evaluation_sizes_are_torchvisions(height: int, width: int) -> None:
    (size,) = resized_sizes(np.array([height]), np.array([width]), Preprocessing(resize=64, size=64))
    assert tuple(size) == tuple(F.resize(torch.empty(1, height, width), [64]).shape[1:])
    top, left = centre_anchor(size[None], 56)[0]
    numbered = torch.arange(int(size[0]) * int(size[1])).view(1, *size)
    assert F.center_crop(numbered, [56, 56])[0, 0, 0] == numbered[0, top, left]


@settings(max_examples=60, deadline=None)
@given(st.integers(9, 40), st.integers(9, 40))
def test_ten_crops_are_torchvisions(height: int, width: int) -> None:
    numbered = torch.arange(height * width).view(1, height, width)
    places, flips = ten_crops(np.array([[height, width]] * 2, np.int32), 9)
    windows = [numbered[:, top : top + 9, left : left + 9] for top, left in places]
    ours = torch.stack([w.flip(-1) if flip else w for w, flip in zip(windows, flips, strict=True)])
    assert torch.equal(ours, torch.stack(2 * F.ten_crop(numbered, 9)))
