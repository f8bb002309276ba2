"""How fast latents come from disk: our packed store against one .npy file per item, as (mean, std) batches in float32.

    python benchmarks/feature_loading.py --items=10000 --rounds=9

Latents of 4x32x32 with a label, batch 256, no workers, one thread, warm page cache, shuffled. The per-item files are read
as the published data sets do (`np.load`, split into mean and log-variance, stacked) and come in two forms:

    pickled   (moments, label) as an object array, U-ViT's ImageNet features, and the baseline. They are read by our reader
              that runs nothing of them, which is no slower than `np.load` with pickles allowed (10.4 and 9.0 thousand
              items/s side by side on two shared cores)
    plain     moments as an array of numbers, U-ViT's COCO features, read by `np.load`

Ours is read by `Features.batch` alone and through `Stream`, which shuffles, with values kept in float16 (the default) and
in float32. Variants take turns in random order; ours is measured twice (A/A); ratios are medians over rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import data  # noqa: E402
from libs.data import published_features  # noqa: E402
from libs.data.restricted import read_npy  # noqa: E402

BATCH = 256


def write_items(folder, items):
    """The same latents in both forms of one file per item."""
    rng = np.random.default_rng(0)
    for form in ("pickled", "plain"):
        (folder / form).mkdir()
    for i in range(items):
        moments = rng.standard_normal((8, 32, 32), np.float32)
        pair = np.empty(2, object)
        pair[:] = moments, i % 1000
        np.save(folder / "pickled" / f"{i}.npy", pair)
        np.save(folder / "plain" / f"{i}.npy", moments)


def per_item(folder, read, batches):
    """Batches as a data set of one file per item and its loader make them."""
    for indices in batches:
        moments = torch.stack([torch.from_numpy(read(folder / f"{i}.npy")) for i in indices])
        mean, logvar = moments.chunk(2, dim=1)
        yield {"mean": mean, "std": (logvar.clamp(-30, 20) / 2).exp_()}


def shuffled(items, rng):
    return np.split(rng.permutation(items), range(BATCH, items, BATCH))


def seconds(batches):
    begun = time.perf_counter()
    count = sum(len(batch["mean"]) for batch in batches)
    return (time.perf_counter() - begun) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_items(folder, options.items)
        half, full = (_store(folder, dtype) for dtype in ("float16", "float32"))
        steps = options.items // BATCH
        variants = {
            "one file per item, pickled": lambda order: per_item(folder / "pickled", lambda path: read_npy(path)[0], order),
            "one file per item, plain": lambda order: per_item(
                folder / "plain", lambda path: np.load(path, allow_pickle=False), order),
            "ours, Features.batch": lambda order: map(half.batch, order),
            "ours again (A/A)": lambda order: map(half.batch, order),
            "ours, Features.batch, float32": lambda order: map(full.batch, order),
            "ours, Stream": lambda order: islice(data.Stream(half, BATCH, seed=0)(0), steps),
        }
        names, times = list(variants), {name: [] for name in variants}
        for turn in range(options.rounds + 1):
            order = shuffled(options.items, rng)
            for name in rng.permutation(names):
                taken = seconds(variants[name](order))
                if turn:  # the first round warms the page cache
                    times[name].append(taken)
    print(f"{options.items} latents of 4x32x32, batch {BATCH}, no workers, one thread, {options.rounds} rounds")
    print(f"{'':32s} {'items/s':>9s} {'times the baseline':>19s}")
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[names[0]], times[name], strict=True))
        print(f"{name:32s} {1 / statistics.median(times[name]):9,.0f} {ratio:19.1f}")


def _store(folder, dtype):
    published_features.convert(folder / "pickled", folder / dtype, dtype=dtype, mirrored=False, progress=False)
    return data.Features(folder / dtype)


if __name__ == "__main__":
    main()
