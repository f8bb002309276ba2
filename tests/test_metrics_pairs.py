"""KID, precision, recall, density, coverage, neighbours, Inception score, intervals and the suite of them."""

import math

import numpy as np
import pytest
import torch

from libs import metrics
from libs.metrics import intervals, kernel, neighbours
from libs.metrics.gaussian import Gaussian, Moments


def normal(n, dims, seed, shift=0.0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def kid_by_loops(x, y):
    """Binkowski et al. 2018, equation 4, pair by pair."""
    x, y = x.numpy(), y.numpy()

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * np.mean([[k(a, b) for b in y] for a in x])


def test_kid_is_its_formula():
    x, y = normal(13, 5, 0), normal(9, 5, 1, 0.5)
    assert metrics.kid(x, y) == pytest.approx(kid_by_loops(x, y), rel=1e-12)
    assert metrics.kid(x, y, block=4) == pytest.approx(metrics.kid(x, y), rel=1e-12)


def test_kid_is_unbiased_where_frechet_is_not():
    values = [metrics.kid(normal(20, 8, 2 * seed), normal(30, 8, 2 * seed + 1)) for seed in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0
    assert metrics.frechet_from_features(normal(20, 8, 0), normal(30, 8, 1)) > 0.5


@pytest.mark.parametrize("n", [60, 400])
def test_kid_subsets_equal_kid_of_each_subset(n):
    x, y = normal(n, 6, 3), normal(n - 5, 6, 4, 0.3)
    generator = torch.Generator().manual_seed(7)
    expected = []
    for _ in range(4):
        rows, columns = (torch.randperm(len(part), generator=generator)[:40] for part in (x, y))
        expected.append(metrics.kid(x[rows], y[columns]))
    mean, deviation = metrics.kid_subsets(x, y, subsets=4, size=40, seed=7)
    assert mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert deviation == pytest.approx(np.std(expected), rel=1e-8)
    assert metrics.kid_subsets(x, y, subsets=4, size=40, seed=7) == (mean, deviation)
    assert metrics.kid_subsets(x[:10], y, subsets=4, size=40)[1] > 0  # halves of the smaller set still differ


def test_kid_of_a_resample_leaves_out_pairs_of_copies():
    x, y = normal(6, 3, 5), normal(7, 3, 6)
    counts = torch.tensor([[1, 1, 1, 1, 1, 1], [2, 0, 1, 1, 1, 1]])
    found = kernel.kid_resampled(x, y, counts)
    assert found[0].item() == pytest.approx(metrics.kid(x, y), rel=1e-12)
    drawn = x[[0, 0, 2, 3, 4, 5]]
    gram = (drawn @ drawn.T / 3 + 1) ** 3
    kept = 1 - torch.eye(6, dtype=torch.float64)
    kept[0, 1] = kept[1, 0] = 0
    within_x = (gram * kept).sum() / kept.sum()
    whole = (y @ y.T / 3 + 1) ** 3
    expected = within_x + (whole.sum() - whole.trace()) / 42 - 2 * ((drawn @ y.T / 3 + 1) ** 3).mean()
    assert found[1].item() == pytest.approx(expected.item(), rel=1e-12)


def neighbourhood_by_sklearn(generated, real, k):
    from sklearn.metrics import pairwise_distances

    within_real, within_fake = pairwise_distances(real), pairwise_distances(generated)
    across = pairwise_distances(real, generated)
    real_radii, fake_radii = np.sort(within_real)[:, k], np.sort(within_fake)[:, k]
    inside = across <= real_radii[:, None]
    return (inside.any(0).mean(), (across <= fake_radii).any(1).mean(), inside.sum(0).mean() / k,
            inside.any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_metrics_are_their_formulas(k):
    generated, real = normal(70, 4, 8, 0.4), normal(90, 4, 9)
    expected = neighbourhood_by_sklearn(generated.numpy(), real.numpy(), k)
    for block in (1024, 7):
        found = (*metrics.precision_recall(generated, real, k=k, block=block),
                 *metrics.density_coverage(generated, real, k=k, block=block))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_mode_collapse_has_high_precision_and_low_recall_and_not_the_other_way_round():
    real = normal(300, 8, 10)
    collapsed = 0.01 * normal(300, 8, 11)  # all at the mean of the real ones: plausible, and all the same
    precision, recall = metrics.precision_recall(collapsed, real)
    assert precision > 0.95 and recall < 0.05
    precision, recall = metrics.precision_recall(real, collapsed)
    assert precision < 0.05 and recall > 0.95
    density, coverage = metrics.density_coverage(collapsed, real)
    assert density > 1 and coverage < 0.5
    assert metrics.precision_recall(normal(300, 8, 12, 50.0), real) == (0, 0)
    assert min(*metrics.precision_recall(real, real), metrics.density_coverage(real, real)[1]) == 1


def test_nearest_finds_copies_at_distance_zero():
    real = normal(50, 16, 13, 1e4)
    generated = torch.cat([real[[7, 3]], normal(3, 16, 14, 1e4)])
    distances, indices = metrics.nearest(generated, real, k=2, block=2)
    assert indices[:2, 0].tolist() == [7, 3] and distances[:2, 0].tolist() == [0, 0]
    expected = torch.cdist(generated, real, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1)
    assert torch.equal(indices, expected.indices[:, :2])
    torch.testing.assert_close(distances, expected.values[:, :2])
    with pytest.raises(ValueError, match="k is 51; there are 50"):
        metrics.nearest(generated, real, k=51)
    assert neighbours.nearest is metrics.nearest


def test_inception_score_closed_forms():
    assert metrics.inception_score(torch.full((40, 5), 0.2), splits=4) == pytest.approx((1, 0), abs=1e-9)
    assert metrics.inception_score(torch.eye(5).repeat(8, 1), splits=1) == pytest.approx((5, 0))
    # Half the images sure of class 0, half of class 1, each with certainty p: log 2 minus the entropy of p.
    p = 0.9
    halves = torch.tensor([[p, 1 - p], [1 - p, p]]).repeat(10, 1)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert metrics.inception_score(halves, splits=1)[0] == pytest.approx(2 * math.exp(-entropy), rel=1e-6)
    # Class after class, as images are sampled: parts must not consist of one class each.
    assert metrics.inception_score(torch.eye(4).repeat_interleave(250, 0), splits=4)[0] > 3.9
    with pytest.raises(ValueError, match="logits"):
        metrics.inception_score(torch.randn(10, 3))
    with pytest.raises(ValueError, match="splits is 11; 10 images"):
        metrics.inception_score(torch.full((10, 2), 0.5), splits=11)


def test_recognised_counts_the_class_asked_for():
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2]])
    assert metrics.recognised(probabilities, [0, 1, 1]).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="0 to 1"):
        metrics.recognised(probabilities, [0, 1, 2])
    with pytest.raises(ValueError, match="3 images"):
        metrics.recognised(probabilities, [0, 1])


def test_mean_interval_has_the_width_of_the_normal_one():
    hits = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    low, high = intervals.mean_interval(hits)
    expected = 1.96 * hits.std().item() / 20
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert low < hits.mean() < high
    assert intervals.mean_interval(hits) == (low, high)
    assert intervals.mean_interval(hits, seed=1) != (low, high)
    assert intervals.mean_interval(torch.ones(10)) == (1, 1)


@pytest.mark.parametrize("n", [30, 200])
def test_frechet_interval_resamples_the_distance(n):
    x, y = normal(n, 24, 15, 0.2), normal(500, 24, 16)
    reference = Moments(24).update(y).gaussian()
    value = metrics.frechet_from_features(x, reference.mean, reference.covariance)
    found = intervals.frechet_interval(x, reference, value, resamples=10, seed=3)
    plain = intervals.bootstrap(
        lambda rows: metrics.frechet_from_features(x[rows], reference.mean, reference.covariance), n,
        value=value, resamples=10, seed=3)
    np.testing.assert_allclose(found, plain, rtol=1e-8)
    assert found[0] < value < found[1]


def test_bootstrap_is_seeded_and_checked():
    x = normal(50, 1, 17).flatten()
    first = metrics.bootstrap(lambda rows: x[rows].mean(), 50)
    assert first == metrics.bootstrap(lambda rows: x[rows].mean(), 50) and first[0] < x.mean() < first[1]
    assert first != metrics.bootstrap(lambda rows: x[rows].mean(), 50, seed=1)
    with pytest.raises(ValueError, match="at least 1 image and 2 resamples"):
        metrics.bootstrap(lambda rows: 0.0, 0)
    with pytest.raises(ValueError, match="level is 95"):
        metrics.bootstrap(lambda rows: 0.0, 5, level=95)


def test_warnings_say_when_images_are_few():
    assert "full rank" in metrics.sample_size_warning(2048, 2048)
    assert "few for a Fréchet" in metrics.sample_size_warning(5000, 2048)
    assert metrics.sample_size_warning(10_000, 2048) == ""
    assert "few for a Fréchet" in metrics.sample_size_warning(500, 64)
    assert metrics.sample_size_warning(2048, 64) == ""
    said = metrics.warnings(3, 8, feature="a", real=0, classes=False)
    assert len(said) == 3 and "no KID, precision and recall, density and coverage" in said[1] and "no class probabilities" in said[2]
    assert any("too few for precision and recall" in each for each in metrics.warnings(3, 8, feature="a", real=100))
    assert metrics.warnings(20_000, 8, feature="a", names=("fd", "kid")) == []


def test_suite_names_numbers_and_counts():
    x, y = normal(150, 6, 18, 0.3), normal(120, 6, 19)
    probabilities = torch.eye(3, dtype=torch.float64).repeat(50, 1)
    labels = torch.arange(3).repeat(50)
    found = metrics.scores(x, y, feature="net", probabilities=probabilities, labels=labels, resamples=5)
    assert set(found) == {"fd_net", "kid_net", "precision_net", "recall_net", "density_net", "coverage_net",
                          "is_net", "accuracy_net"}
    assert found["fd_net"]["value"] == pytest.approx(metrics.frechet_from_features(x, y))
    assert found["kid_net"]["value"] == pytest.approx(metrics.kid(x, y))
    assert found["precision_net"]["value"] == metrics.precision_recall(x, y)[0]
    assert found["coverage_net"]["value"] == metrics.density_coverage(x, y)[1]
    assert found["is_net"]["value"] == pytest.approx(3, rel=1e-6)
    assert found["accuracy_net"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 150}
    for score in found.values():
        assert score["low"] <= score["value"] <= score["high"] and score["n"] == 150
    plain = metrics.scores(x, y, feature="net", names=("fd", "pr"), resamples=0)
    assert set(plain) == {"fd_net", "precision_net", "recall_net"}
    assert plain["fd_net"] == {"value": found["fd_net"]["value"], "low": None, "high": None, "n": 150}
    limited = metrics.scores(x, y, feature="net", names=("pr",), resamples=0, limit=100)
    assert limited["precision_net"]["n"] == 100


def test_kid_of_subsets_stands_beside_kid_where_asked():
    """Med-Art's three numbers in one table: the same unit, the deviation of the subsets beside the interval."""
    x, y = normal(60, 6, 18, 0.3), normal(50, 6, 19)
    found = metrics.scores(x, y, feature="inception", names=("fd", "kid", "kid_subsets"), resamples=5)
    assert list(found) == ["fid", "kid_inception", "kid_subsets_inception"]
    one, many = found["kid_inception"], found["kid_subsets_inception"]
    assert (many["value"], many["std"]) == metrics.kid_subsets(x, y) and many["n"] == 60
    assert abs(many["value"] - one["value"]) < many["std"] / 2, "of 100 subsets: five standard errors"
    assert many["high"] - many["low"] == pytest.approx(one["high"] - one["low"])
    assert "kid_subsets" not in metrics.suite.NAMES
    metrics.check_names(("fd", "kid_subsets"))
    assert "too few for KID over subsets" in metrics.warnings(1, 6, feature="a", names=("kid_subsets",), real=9)[0]


def test_only_inception_is_called_fid_and_statistics_allow_nothing_else():
    x, reference = normal(20, 6, 20), Moments(6).update(normal(50, 6, 21)).gaussian("inception")
    assert set(metrics.scores(x, None, reference, feature="inception", resamples=2)) == {"fid"}
    with pytest.raises(ValueError, match="'inception' features, the generated ones of 'dinov2_vitb14'"):
        metrics.scores(x, None, reference, feature="dinov2_vitb14")
    unnamed = Gaussian(reference.mean, reference.covariance)
    assert set(metrics.scores(x, None, unnamed, feature="inception_1234abcd")) == {"fd_inception_1234abcd"}
    with pytest.raises(ValueError, match="neither"):
        metrics.scores(x, feature="a")
    with pytest.raises(ValueError, match=r"unknown metrics \['fdi'\]"):
        metrics.scores(x, x, feature="a", names=("fdi",))


def test_classes_are_scored_apart_and_small_ones_leave_metrics_out():
    x, y = normal(60, 4, 22), normal(80, 4, 23)
    of_x = torch.tensor([0] * 40 + [1] * 19 + [2])
    of_y = torch.tensor([0] * 40 + [1] * 40)
    found = metrics.scores_per_class(x, of_x, y, of_y, classes=["a", "b", "c"], feature="net", resamples=2)
    assert found["a"]["fd_net"]["value"] == pytest.approx(metrics.frechet_from_features(x[:40], y[:40]))
    assert found["b"]["kid_net"]["n"] == 19 and found["c"] == {}
    with pytest.raises(ValueError, match="59 labels for 60"):
        metrics.scores_per_class(x, of_x[1:], y, of_y, classes=["a"], feature="net")


def test_features_that_do_not_fit_are_refused():
    for function in (metrics.kid, metrics.precision_recall, metrics.density_coverage, metrics.nearest):
        with pytest.raises(ValueError, match="dimensions"):
            function(normal(10, 3, 0), normal(10, 4, 0))
        with pytest.raises(ValueError):
            function(normal(10, 3, 0), normal(0, 3, 0))
    with pytest.raises(ValueError, match="k is 3 for 3 generated images"):
        metrics.precision_recall(normal(3, 2, 0), normal(10, 2, 0))
