"""How fast the Fréchet distance is beside scipy's matrix square root, and images beside a way through PNG.

    python benchmarks/metrics.py [--dims=2048] [--rounds=3] [--few=500] [--images=32]

Variants take turns in rotating order; "again" is ours a second time: its ratio to ours shows the noise (A/A).
Ratios are medians of the rounds. The plain version takes covariances by np.cov and the square root of their
product, as pytorch-fid does; each variant starts from the same arrays. On shared cores set OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import metrics  # noqa: E402


def rounds(variants, count):
    """{name: (seconds of every round, last result)}, the order turned by one each round."""
    names, found = list(variants), {name: ([], None) for name in variants}
    for k in range(count):
        for name in names[k % len(names):] + names[:k % len(names)]:
            started = time.perf_counter()
            result = variants[name]()
            found[name] = (found[name][0] + [time.perf_counter() - started], result)
    return found


def ratio(found, slow, fast):
    return statistics.median(a / b for a, b in zip(found[slow][0], found[fast][0]))


def sqrtm_distance(mu1, sigma1, mu2, sigma2):
    """pytorch-fid's way. It asks for an error estimate by `disp`, which newer scipy no longer gives."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    trace = np.trace(root).real
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace)


def statistics_of(x):
    return x.mean(0), np.cov(x, rowvar=False)


def draw(n, dims, seed):
    """Features like Inception's: not negative, correlated, of falling variance."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    mix *= torch.linspace(1, 0.05, dims, dtype=torch.float64)
    generator.manual_seed(seed)
    return (torch.randn(n, dims, generator=generator, dtype=torch.float64) @ mix + 0.02 * seed).relu()


def report(title, found, goal):
    print(title)
    for name, (seconds, result) in found.items():
        print(f"  {name:28s} {statistics.median(seconds):9.3f} s   {result:.9g}")
    difference = abs(found["ours"][1] / found["plain"][1] - 1)
    print(f"  plain / ours {ratio(found, 'plain', 'ours'):.1f} (goal {goal}), again / ours "
          f"{ratio(found, 'again', 'ours'):.2f}, relative difference {difference:.1e} (goal 1e-6)")


def frechet(dims, few, count):
    x, y = draw(2 * dims, dims, 1), draw(2 * dims, dims, 2)
    small = draw(few, dims, 3)
    one, two = statistics_of(x.numpy()), statistics_of(y.numpy())
    report(f"Fréchet distance at {dims} dimensions, {len(x)} images", rounds({
        "plain": lambda: sqrtm_distance(*one, *two),
        "ours": lambda: metrics.frechet_distance(*one, *two),
        "again": lambda: metrics.frechet_distance(*one, *two)}, count), 10)
    mean, covariance = (torch.from_numpy(part) for part in two)
    report(f"Fréchet distance at {dims} dimensions, {few} images against statistics of {len(y)}", rounds({
        "plain": lambda: sqrtm_distance(*statistics_of(small.numpy()), *two),
        "ours": lambda: metrics.frechet_from_features(small, mean, covariance),
        "again": lambda: metrics.frechet_from_features(small, mean, covariance)}, count), 5)
    other = draw(2 * few, dims, 4)
    report(f"Fréchet distance at {dims} dimensions, {few} images against {2 * few}", rounds({
        "plain": lambda: sqrtm_distance(*statistics_of(small.numpy()), *statistics_of(other.numpy())),
        "ours": lambda: metrics.frechet_from_features(small, other),
        "again": lambda: metrics.frechet_from_features(small, other)}, count), 5)


def images(n, count, size=256):
    """uint8 tensors straight to the feature network's input and features, against PNG files on the way."""
    from PIL import Image

    smooth = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = (torch.nn.functional.interpolate(smooth, size=(size, size), mode="bicubic") * 255)
    pictures = (pictures + 6 * torch.randn(pictures.shape)).clamp(0, 255).to(torch.uint8)
    network = metrics.extractor("inception", weights="random")

    def through_png(consume):
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(pictures):
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(f"{folder}/{i}.png")
            arrays = [np.array(Image.open(f"{folder}/{i}.png").convert("RGB")) for i in range(n)]
        return consume(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))

    def features(given):
        return float(network(given).double().abs().mean())

    def handed_over(given):
        return float(given.double().mean())

    for title, consume in (("images handed over", handed_over), ("Inception features", features)):
        found = rounds({"plain": lambda: through_png(consume), "ours": lambda: consume(pictures),
                        "again": lambda: consume(pictures)}, count)
        speed = {name: n / statistics.median(seconds) for name, (seconds, _) in found.items()}
        print(f"{title}, {n} of {size}x{size}: through PNG {speed['plain']:.1f} img/s, as uint8 tensors "
              f"{speed['ours']:.1f} img/s, ratio {ratio(found, 'plain', 'ours'):.2f}, again / ours "
              f"{ratio(found, 'again', 'ours'):.2f}, equal: {found['plain'][1] == found['ours'][1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("dims", 2048), ("rounds", 3), ("few", 500), ("images", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, scipy {scipy.__version__}, {torch.get_num_threads()} threads")
    frechet(given.dims, given.few, given.rounds)
    images(given.images, given.rounds)
