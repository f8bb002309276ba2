"""Fréchet distance: pytorch-fid's numbers, closed forms, scipy's square root, streamed moments, files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from libs.metrics import Moments, frechet_distance, frechet_from_features, load_stats, save_stats

PARITY = Path(__file__).parent / "parity/frechet.safetensors"


def draw(n, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    shift = torch.rand(dims, generator=generator, dtype=torch.float64)
    return (torch.randn(n, dims, generator=generator, dtype=torch.float64) @ mix + shift).relu()


def by_scipy(x, y):
    """The distance as pytorch-fid writes it: np.cov and the square root of the product."""
    from scipy.linalg import sqrtm

    x, y = x.numpy(), y.numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(sqrtm(one @ two)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * root


@pytest.mark.parametrize("pair", ["11", "12", "13"])
def test_parity_with_pytorch_fid(pair):
    held = load_file(PARITY)
    one, two = ((held[f"in.mu{k}"], held[f"in.sigma{k}"]) for k in pair)
    expected = held[f"out.fid_{pair}"].item()
    assert frechet_distance(*one, *two) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert frechet_distance(*two, *one) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    numpy = [part.numpy() for part in (*one, *two)]
    assert frechet_distance(*numpy) == frechet_distance(*one, *two)


def test_closed_forms():
    # In one dimension: (mu1 - mu2)^2 + (s1 - s2)^2; commuting covariances add over eigenvalues.
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + 1)
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([16.0, 1.0, 0.0]).double()
    mean = torch.zeros(3)
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(mean, a.diag(), mean, b.diag()) == pytest.approx(expected)
    assert frechet_distance(mean, b.diag(), mean, b.diag()) == pytest.approx(0, abs=1e-12)
    zero = torch.zeros(3, 3)
    assert frechet_distance(mean, zero, mean + 2, a.diag()) == pytest.approx(12 + 14)
    # A rotation U of N(0, diag(a)): tr (S1 S2)^(1/2) of two rank-one covariances is |u.v|.
    u, v = torch.tensor([1.0, 0, 0]), torch.tensor([0.6, 0.8, 0])
    assert frechet_distance(mean, torch.outer(u, u), mean, torch.outer(v, v)) == pytest.approx(2 - 2 * 0.6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("n, m", [(400, 300), (20, 300), (300, 20), (20, 30), (48, 49), (2, 2)])
def test_agrees_with_scipy_with_few_and_many_images(n, m):
    x, y = draw(n, 48, 1), draw(m, 48, 2)
    expected = by_scipy(x, y)
    one, two = Moments(48).update(x).gaussian(), Moments(48).update(y).gaussian()
    direct = frechet_distance(one.mean, one.covariance, two.mean, two.covariance)
    assert direct == pytest.approx(expected, rel=2e-6)
    assert frechet_from_features(x, y) == pytest.approx(direct, rel=1e-9)
    assert frechet_from_features(x, two.mean, two.covariance) == pytest.approx(direct, rel=1e-9)
    assert frechet_from_features(x.float(), y.float()) == pytest.approx(direct, rel=1e-5)


def test_same_features_are_at_distance_zero():
    for n in (10, 200):
        x = draw(n, 32, 3)
        assert frechet_from_features(x, x.clone()) == pytest.approx(0, abs=1e-9)


def test_moments_stream_merge_and_travel_as_sums():
    x = draw(101, 12, 4)
    whole = Moments(12).update(x)
    parts = [Moments(12).update(part) for part in x.split([1, 50, 30, 20])]
    merged = Moments(12)
    for part in parts:
        merged.merge(part)
    summed = Moments(12).set_state(sum(part.state() for part in parts))
    for moments in (whole, merged, summed):
        assert moments.n == 101
        np.testing.assert_allclose(moments.mean(), x.numpy().mean(0), rtol=1e-12)
        expected = np.cov(x.numpy(), rowvar=False)
        np.testing.assert_allclose(moments.covariance(), expected, rtol=1e-9, atol=1e-12)
    assert Moments(12).update(x.float()).sum.dtype == torch.float64


def test_moments_refuse_what_has_no_statistics():
    moments = Moments(3)
    with pytest.raises(ValueError, match="no image"):
        moments.mean()
    moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        moments.covariance()
    with pytest.raises(ValueError, match="4 dimensions; these moments are of 3"):
        moments.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"not finite in 1 of 2 rows, the first at \[1\]"):
        moments.update(torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]))
    with pytest.raises(ValueError, match="shape"):
        moments.update(torch.zeros(3))
    with pytest.raises(ValueError, match="state"):
        moments.set_state(torch.zeros(5))
    assert moments.n == 1


def test_bad_shapes_are_named():
    mean, sigma = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match=r"second: mean has shape \(3,\) and covariance \(2, 2\)"):
        frechet_distance(mean, sigma, mean, torch.eye(2))
    with pytest.raises(ValueError, match="3 dimensions .* 4"):
        frechet_distance(mean, sigma, torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, sigma * math.nan, mean, sigma)
    with pytest.raises(ValueError, match="1 images have no covariance"):
        frechet_from_features(torch.zeros(1, 3), mean, sigma)


def test_statistics_files(tmp_path):
    x = Moments(4).update(draw(30, 4, 5)).gaussian("dinov2_vitb14")
    save_stats(tmp_path / "new/stats.npz", x)
    back = load_stats(tmp_path / "new/stats.npz", dims=4)
    assert torch.equal(back.mean, x.mean) and torch.equal(back.covariance, x.covariance)
    assert (back.n, back.features) == (30, "dinov2_vitb14")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["stats.npz"]
    # As pytorch-fid and U-ViT publish them: mu and sigma alone.
    np.savez(tmp_path / "published.npz", mu=x.mean.numpy(), sigma=x.covariance.numpy().astype(np.float32))
    published = load_stats(tmp_path / "published.npz")
    assert published.covariance.dtype == torch.float64 and (published.n, published.features) == (0, "")
    with pytest.raises(ValueError, match="statistics of 4 dimensions; these features have 2048"):
        load_stats(tmp_path / "published.npz", dims=2048)
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        load_stats(tmp_path / "absent.npz")
    np.savez(tmp_path / "lacking.npz", mu=x.mean.numpy())
    with pytest.raises(ValueError, match=r"lacks \['sigma'\]"):
        load_stats(tmp_path / "lacking.npz")
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()]), sigma=np.eye(1))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "published.npz").read_bytes()[:100])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("pickled", "torn", "empty"):
        with pytest.raises(ValueError, match=f"{name}.npz is not a readable .npz"):
            load_stats(tmp_path / f"{name}.npz")
