"""Fréchet distance between two sets of features, each summarised as a Gaussian.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))      Dowson & Landau 1982; Heusel et al. 2017

The last trace never needs a matrix square root. With any factors S1 = A A^T and S2 = B B^T it is the sum of
the singular values of A^T B, for the eigenvalues of S1 S2 are the squares of those singular values. A
Cholesky factor serves where the covariance has full rank, the centred features themselves where there are
fewer images than dimensions.

Features of Inception's last pooling with its published weights make this number an "FID"; nothing else does.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack

from libs import files


class Gaussian(NamedTuple):
    """Mean (D,), covariance (D, D) in float64, the number of images behind them, the name of their features and the
    fingerprint of the network that gave them.

    `n` = 0, `features` = '' and `network` = '' mean unknown: published statistics files carry none of them.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int = 0
    features: str = ""
    network: str = ""


def float64(values, device=None):
    """`values` (Tensor or array) as a float64 tensor; on the CPU where the device has no float64."""
    values = torch.as_tensor(values)
    device = values.device if device is None else torch.device(device)
    return values.to(device="cpu" if device.type == "mps" else device).to(torch.float64)


def as_features(values, what="features"):
    """Features (N, D) in float64; ValueError unless they are two-dimensional and finite."""
    values = float64(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{what} have shape {tuple(values.shape)}; expected (images, dimensions)")
    finite = torch.isfinite(values).all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what} are not finite in {len(rows)} of {len(values)} rows, the first at {rows[:5]}"
        )
    return values


class Moments:
    """Count, sum and sum of outer products of features, in float64: memory does not grow with the number of
    images.

    Processes add up their `state()` (an all-reduce), or `merge` each other's; the result is that of one
    process.
    """

    def __init__(self, dims, *, device="cpu"):
        if dims < 1:
            raise ValueError(f"dims is {dims}; a feature has at least one dimension")
        self.dims = dims
        self.n = 0
        self.sum = float64(torch.zeros(dims), device)
        self.outer = self.sum.new_zeros(dims, dims)

    def update(self, features):
        """Takes in a batch of features (N, D); returns itself."""
        features = as_features(features).to(self.sum.device)
        if features.shape[1] != self.dims:
            raise ValueError(
                f"features have {features.shape[1]} dimensions; these moments are of {self.dims}"
            )
        self.n += len(features)
        self.sum += features.sum(dim=0)
        self.outer.addmm_(features.T, features)
        return self

    def merge(self, other):
        """Adds the images of another `Moments`; returns itself."""
        return self.set_state(self.state() + other.state().to(self.sum.device))

    def state(self):
        """All sums as one float64 vector (1 + D + D^2,). States of several processes may be added."""
        return torch.cat([self.sum.new_tensor([self.n]), self.sum, self.outer.flatten()])

    def set_state(self, state):
        """Takes over a (summed) state; returns itself."""
        if state.shape != (1 + self.dims + self.dims**2,):
            raise ValueError(
                f"state has shape {tuple(state.shape)}; {self.dims} dimensions need "
                f"({1 + self.dims + self.dims**2},)"
            )
        state = float64(state, self.sum.device)
        self.n = round(state[0].item())
        self.sum = state[1 : 1 + self.dims].clone()
        self.outer = state[1 + self.dims :].reshape(self.dims, self.dims).clone()
        return self

    def mean(self):
        """Mean (D,)."""
        if self.n < 1:
            raise ValueError("no image yet: its features have no mean")
        return self.sum / self.n

    def covariance(self):
        """Covariance (D, D) with divisor N - 1, as in pytorch-fid."""
        if self.n < 2:
            raise ValueError(f"{self.n} images have no covariance; at least 2 are needed")
        mean = self.mean()
        covariance = (self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return (covariance + covariance.T) / 2

    def gaussian(self, features=""):
        """The statistics as a `Gaussian`, with the features' name where one is given."""
        return Gaussian(self.mean(), self.covariance(), self.n, features)


def factor(covariance):
    """A (D, r) with A A^T = covariance: Cholesky where it is positive definite, else its eigenvectors of rank
    r."""
    cholesky, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed):
        return cholesky
    values, vectors = torch.linalg.eigh(covariance)
    # Below this an eigenvalue is rounding: thousands of them would each add their square root to the trace.
    keep = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, keep] * values[keep].sqrt()


def trace_sqrt_product(a, b):
    """tr((A A^T B B^T)^(1/2)) for factors a (D, r) and b (D, s): the sum of the singular values of A^T B."""
    product = a.T @ b
    return torch.linalg.svdvals(product).sum() if min(product.shape) else product.new_zeros(())


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Fréchet distance between N(mu1, sigma1) and N(mu2, sigma2), means (D,), covariances (D, D); returns a
    float.

    Covariances may be singular. Agrees with scipy's matrix square root, as pytorch-fid takes it, to 1e-6
    relative.
    """
    mu1, sigma1 = _checked(mu1, sigma1, "first")
    mu2, sigma2 = _checked(mu2, sigma2, "second")
    _same_dims(mu1, mu2)
    mu2, sigma2 = mu2.to(mu1.device), sigma2.to(mu1.device)
    shift = (mu1 - mu2).square().sum()
    spread = sigma1.trace() + sigma2.trace() - 2 * _overlap(sigma1, sigma2)
    return float(shift + spread.clamp(min=0))


def frechet_from_features(x1, mu2, sigma2=None):
    """Fréchet distance from features x1 (N, D) to `mu2`, `sigma2`, or to features x2 (M, D) given in place of
    `mu2`.

    With fewer images than dimensions the covariance is never formed: the centred features are its factor.
    """
    mean1, factor1 = _from_features(x1, "first features")
    if sigma2 is None:
        mean2, factor2 = _from_features(mu2, "second features")
        _same_dims(mean1, mean2)
        if factor1.shape[1] > len(mean1) < factor2.shape[1]:
            return frechet_distance(mean1, factor1 @ factor1.T, mean2, factor2 @ factor2.T)
        trace2 = factor2.square().sum()
    else:
        mean2, sigma2 = _checked(mu2, sigma2, "second")
        _same_dims(mean1, mean2)
        if factor1.shape[1] > len(mean1):
            return frechet_distance(mean1, factor1 @ factor1.T, mean2, sigma2)
        trace2, factor2 = sigma2.trace(), factor(sigma2.to(mean1.device))
    overlap = trace_sqrt_product(factor1, factor2.to(mean1.device))
    shift = (mean1 - mean2.to(mean1.device)).square().sum()
    return float(shift + (factor1.square().sum() + trace2.to(mean1.device) - 2 * overlap).clamp(min=0))


def centred_factor(features):
    """Mean (D,) and factor (D, N) of the covariance of features (N, D): the centred features / sqrt(N -
    1)."""
    mean = features.mean(dim=0)
    return mean, (features - mean).T / (len(features) - 1) ** 0.5


def save_stats(path, gaussian):
    """Writes `mu`, `sigma` (and `n`, `features`, `network` where known) as .npz, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"n": np.int64(gaussian.n)} if gaussian.n else {}
    known |= {key: np.array(getattr(gaussian, key)) for key in ("features", "network") if getattr(gaussian, key)}
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with open(staged, "wb") as file:
        np.savez(file, mu=gaussian.mean.cpu().numpy(), sigma=gaussian.covariance.cpu().numpy(), **known)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def load_stats(path, *, dims=0, names=("mu", "sigma")):
    """Reads reference statistics (.npz with mu (D,), sigma (D, D), as pytorch-fid writes them) as a
    `Gaussian`.

    `names` are those of the two arrays. Raises FileNotFoundError, or ValueError that names the file and what
    is wrong with it, also where they are not of `dims` dimensions (0: any).
    """
    mu, sigma = names
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no statistics at {path}: a .npz with "{mu}" and "{sigma}" is expected there')
    held = files.read_npz(path, lambda keys: [key for key in keys if key in (mu, sigma, "n", "features", "network")])
    missing = {mu, sigma} - held.keys()
    if missing:
        raise ValueError(f'{path} lacks {sorted(missing)}; it must hold "{mu}" (D,) and "{sigma}" (D, D)')
    mean, covariance = _checked(held[mu], held[sigma], str(path) if mu == "mu" else f"{path}, {mu} and {sigma}")
    if dims and len(mean) != dims:
        raise ValueError(
            f"{path} holds statistics of {len(mean)} dimensions; these features have {dims}: they are of "
            "another network"
        )
    return Gaussian(mean, covariance, int(held.get("n", 0)), str(held.get("features", "")), str(held.get("network", "")))


def _checked(mean, covariance, which):
    mean, covariance = float64(mean), float64(covariance)
    dims = mean.shape[0] if mean.ndim == 1 else None
    if dims is None or covariance.shape != (dims, dims):
        raise ValueError(
            f"{which}: mean has shape {tuple(mean.shape)} and covariance {tuple(covariance.shape)}; "
            "expected (D,) and (D, D)"
        )
    if not (bool(torch.isfinite(mean).all()) and bool(torch.isfinite(covariance).all())):
        raise ValueError(f"{which}: mean or covariance holds values that are not finite")
    return mean, covariance


def _same_dims(mean1, mean2):
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"features of {mean1.shape[0]} dimensions cannot be compared with features of "
            f"{mean2.shape[0]}: were they made by the same network?"
        )


def _overlap(sigma1, sigma2):
    """tr((S1 S2)^(1/2)), from a Cholesky factor of whichever covariance has one."""
    for one, other in ((sigma1, sigma2), (sigma2, sigma1)):
        cholesky, failed = torch.linalg.cholesky_ex(one)
        if not int(failed):
            values = torch.linalg.eigvalsh(_congruent(cholesky, other))
            return _positive(values).sqrt().sum()
    return trace_sqrt_product(factor(sigma1), factor(sigma2))


def _congruent(cholesky, covariance):
    """L^T S L, in its lower triangle at least, with the eigenvalues of L L^T S."""
    if cholesky.device.type != "cpu":
        return cholesky.T @ covariance @ cholesky
    # LAPACK's reduction knows that L is triangular, the result symmetric: under half the time of two products.
    result, _ = lapack.dsygst(covariance.numpy().T, cholesky.numpy().T, itype=2, lower=0)
    return torch.from_numpy(result.T)


def _positive(values):
    """Eigenvalues with those that are only rounding set to zero, since the square root would enlarge them."""
    return torch.where(values > len(values) * torch.finfo(values.dtype).eps * values[-1], values, 0)


def _from_features(features, what):
    """Mean (D,) and factor (D, N) of the covariance of checked features (N, D)."""
    features = as_features(features, what)
    if len(features) < 2:
        raise ValueError(f"{what}: {len(features)} images have no covariance; at least 2 are needed")
    return centred_factor(features)
