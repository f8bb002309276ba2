"""Generated images: exactly N over all processes, image i depending on (seed, i) alone, and where they go."""

import os
from pathlib import Path

import numpy as np
import torch

from libs.pipeline import to_uint8


AT_LEAST = 8  # batches, where there are as many images


def generate(run, pipeline, cond, n, *, seed, batch_size, without=()):
    """This process's share of images 0 .. n-1, in batches.

    Processes take whole batches in turn, so that an image is in the same batch, and rounded the same, for any number of them.

    Args:
        run: engine.Run.
        cond: conditions with n rows, see pipeline.draw_conditions.
        batch_size: images per network call on each process; fewer where so few are asked that most processes would idle.
        without: indices that are not wanted (they are there already); a batch of others is made whole, for the same reason.

    Yields:
        (indices, images): list of int and uint8 Tensor (b, C, H, W) on the CPU.
    """
    size = min(batch_size, max(1, -(-n // AT_LEAST)))
    for indices in [list(range(begin, min(begin + size, n))) for begin in range(0, n, size)][run.rank::run.world]:
        if all(index in without for index in indices):
            continue
        with run.accelerator.autocast():
            images = pipeline({key: value[indices] for key, value in cond.items()}, seed=seed, indices=indices)
        yield indices, to_uint8(images)


def generate_all(run, pipeline, cond, n, *, seed, batch_size):
    """All images 0 .. n-1 on every process: uint8 Tensor (n, C, H, W). For few images, such as a preview."""
    parts = list(generate(run, pipeline, cond, n, seed=seed, batch_size=batch_size))
    images = torch.cat([part for _, part in parts] or [torch.empty(0, *pipeline.image_shape, dtype=torch.uint8)])
    indices = torch.tensor([i for part, _ in parts for i in part], dtype=torch.int64)
    return run.gather_rows(images)[run.gather_rows(indices).argsort()]


class Sink:
    """Where the images of an evaluation go beside the feature networks: PNG files, an `.npz`, or nowhere.

    Args:
        folder: for `<index>.png`; '' for none.
        npz: path of an archive with `arr_0` uint8 (n, H, W, C), image i at row i, as the ADM suite reads it; '' for none.
    """

    def __init__(self, run, *, folder="", npz=""):
        self.run, self.folder, self.npz, self.parts = run, Path(folder) if folder else None, npz, []
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, indices, images):
        """Take in uint8 images (b, C, H, W)."""
        if self.folder:
            for index, image in zip(indices, images):
                save_png(self.folder / f"{index:06d}.png", image)
        if self.npz:
            self.parts.append((indices, images))

    def close(self):
        """Write the archive, from the images of all processes."""
        if self.npz:
            images = self.run.gather_rows(torch.cat([part for _, part in self.parts]))
            order = self.run.gather_rows(torch.tensor([i for part, _ in self.parts for i in part])).argsort()
            if self.run.is_main:
                save_npz(self.npz, arr_0=nhwc(images[order]))


def nhwc(images):
    """uint8 (N, C, H, W) -> array (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def save_npz(path, **arrays):
    """Write an `.npz` in one step: a reader sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".staging-{path.stem}-{os.getpid()}.npz")
    np.savez(staging, **arrays)
    staging.replace(path)


def save_png(path, image, **text):
    """Write a uint8 image (C, H, W), 1 or 3 channels, with `text` in the file's metadata, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, str(value))
    array, path = image.permute(1, 2, 0).numpy(), Path(path)
    staging = path.with_name(f".staging-{path.name}")
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(staging, format="PNG", pnginfo=info)
    staging.replace(path)


def is_there(path, text):
    """Whether a PNG with exactly this `text` in its metadata is there and can be read."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            image.load()
            return image.text == {key: str(value) for key, value in text.items()}
    except (OSError, ValueError, AttributeError, SyntaxError):
        return False
