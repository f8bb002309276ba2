"""The evaluation suite of ADM (Dhariwal & Nichol 2021, guided-diffusion) over .npz archives, in its conventions.

    network    the Inception graph of 2015 on pixels 0 to 255, resized to 299 as TensorFlow 1 does, (x - 128) / 128
    FID        Fréchet distance of the 2048 features of its last pooling
    sFID       of the first 7 channels of mixed_6/conv, 17 x 17 x 7 = 2023 (Nash et al. 2021)
    IS         of softmax(features W), without the bias, over each 5000 images in their order; the mean of the parts
    precision, recall   k = 3, all images of both archives

A reference archive holds `arr_0`, uint8 (N, H, W, C), and often `mu`, `sigma`, `mu_s`, `sigma_s`: statistics of more
images, which then count for FID and sFID. A samples archive holds `arr_0`.

pytorch-fid, and with it the `fid` of our own evaluation, resizes with half-pixel centres and maps 0..255 to
exactly -1..1, so the two differ in the last digits. The suite takes the distances behind precision and
recall in half precision, here they are float64: a few images on a ball's edge may fall to the other side.
The published figures (scripts/adm_suite.py names some) have not been reproduced here: the weights and
archives they need were not at hand.
"""

import contextlib
import logging
import math
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from . import gaussian, networks
from .features import check_images, full_precision
from .inception_score import inception_score
from .intervals import sample_size_warning
from .manifold import precision_recall
from .suite import frechet_name

log = logging.getLogger(__name__)

CHANNELS = 7  # of mixed_6/conv, for sFID
PART = 5000  # images in each part of the Inception score
NEIGHBOURS = 3
FEWEST = NEIGHBOURS + 1
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Network:
    """Callable: uint8 images (N, C, H, W) -> float32 features (N, 2048) and spatial features (N, 2023).

    The graph's blocks mixed, mixed_1, ..., mixed_10 are Mixed_5b, 5c, 5d, 6a, ..., 7c here, so mixed_6/conv is
    the 1x1 branch of Mixed_6d after its normalisation and ReLU. Spatial features lie row by row, channels
    last, as in published `mu_s` and `sigma_s`. `name` is 'inception' with the published weights only.
    """

    dims = {"pool": 2048, "spatial": 17 * 17 * CHANNELS}

    def __init__(self, *, weights="", device="cpu", seed=0):
        built = networks.inception(weights=weights, seed=seed)
        self.name, self.size, self.device = built.name, built.size, torch.device(device)
        self.module = built.module.to(self.device, torch.float32, memory_format=torch.channels_last)
        self.module.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images):
        seen = []
        branch = self.module.network.Mixed_6d.branch1x1
        hook = branch.register_forward_hook(lambda module, inputs, output: seen.append(output[:, :CHANNELS]))
        try:
            with full_precision(self.device):
                features, _ = self.module(self.prepare(images))
        finally:
            hook.remove()
        return features, seen[0].permute(0, 2, 3, 1).flatten(1)

    def prepare(self, images):
        """The network's input for uint8 images with 1 or 3 channels."""
        check_images(images)
        images = images.to(self.device).expand(-1, 3, -1, -1)
        resized = tf1_resize(images.float(), self.size)
        return ((resized - 128) / 128).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def probabilities(self, features):
        """Class probabilities (N, 1008) of features (N, 2048)."""
        with full_precision(self.device):
            return F.linear(features.to(self.device), self.module.head.weight).softmax(dim=1)


def tf1_resize(images, size):
    """Float images (N, C, H, W) resized bilinearly to (N, C, size, size) as TensorFlow 1 does.

    Pixel i of the result lies at i * H / size of the image, in float32: neither are half-pixel centres kept
    nor corners aligned, and beyond the last pixel its value stays. There is no antialiasing.
    """
    for axis in (3, 2):
        length = images.shape[axis]
        if length == size:
            continue
        at = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
        low = at.long()
        high = (low + 1).clamp(max=length - 1)
        first, second = images.index_select(axis, low), images.index_select(axis, high)
        images = first + (second - first) * (at - low).view(-1, *[1] * (3 - axis))
    return images


class Archive:
    """Images of an .npz: uint8 (N, H, W, C) under `array`, read in batches from the file, compressed or not.

    `shape` is that of the array, `names` are those of all arrays in the file. FileNotFoundError, or ValueError
    that names file and array, where it is not what the suite takes; with required=False it may be absent, and
    holds no image then.
    """

    def __init__(self, path, array="arr_0", *, required=True):
        self.path, self.array, self.shape = Path(path), array, (0,)
        if not self.path.is_file():
            raise FileNotFoundError(f"no archive at {self.path}: a .npz is expected there")
        with self._said("not a readable .npz"), zipfile.ZipFile(self.path) as held:
            self.names = [name.removesuffix(".npy") for name in held.namelist()]
        if array in self.names:
            with self._open() as (file, size):
                self.shape, in_columns, dtype = _header(file)
                self._check(in_columns, dtype, size - file.tell())
        elif required:
            raise ValueError(f'{self.path} lacks "{array}"; it holds {_listed(self.names)}')

    def __len__(self):
        return self.shape[0]

    def batches(self, size):
        """uint8 Tensors (size, C, H, W), the last perhaps of fewer images."""
        per_image = math.prod(self.shape[1:])
        with self._open() as (file, _):
            _header(file)
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                content = torch.frombuffer(bytearray(file.read(count * per_image)), dtype=torch.uint8)
                yield content.view(count, *self.shape[1:]).permute(0, 3, 1, 2)

    def _check(self, in_columns, dtype, size):
        if dtype != np.uint8:
            raise ValueError(f"it is {dtype}; images are uint8, values 0 to 255")
        if len(self.shape) != 4 or self.shape[3] not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"it has shape {self.shape}; images are (N, H, W, C), the last axis 1 or 3 channels")
        if len(self) < FEWEST:
            raise ValueError(f"it holds {len(self)} images; {NEIGHBOURS} neighbours of each need at least {FEWEST}")
        if in_columns:
            raise ValueError("it lies in Fortran order; save np.ascontiguousarray(...) of it")
        if size != math.prod(self.shape):
            raise ValueError(f"it has {size} bytes; shape {self.shape} needs {math.prod(self.shape)}")

    @contextlib.contextmanager
    def _open(self):
        """The array's file within the archive, and its size in bytes."""
        member = f"{self.array}.npy"
        with self._said(f'"{self.array}"'), zipfile.ZipFile(self.path) as held, held.open(member) as file:
            yield file, held.getinfo(member).file_size

    @contextlib.contextmanager
    def _said(self, what):
        try:
            yield
        except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path}, {what}: {error}") from error


class Archives(NamedTuple):
    """What is compared: images, reference images (perhaps none), statistics that the reference brings along."""

    samples: Archive
    reference: Archive
    statistics: dict  # {'pool' or 'spatial': Gaussian}


def open_archives(reference, samples):
    """The `Archives` at two paths, checked as far as can be without reading images."""
    generated, real = Archive(samples), Archive(reference, required=False)
    known = {
        kind: gaussian.load_stats(reference, names=names)
        for kind, names in STATISTICS.items()
        if set(names) <= set(real.names)
    }
    if not real and "pool" not in known:
        raise ValueError(
            f'{reference} holds {_listed(real.names)}; a reference holds "arr_0" (images), "mu" and "sigma" '
            "(their statistics), or both"
        )
    return Archives(generated, real, known)


class Measured(NamedTuple):
    """Features of all images of an archive, on the CPU."""

    pool: torch.Tensor
    spatial: torch.Tensor


def measure(archive, network, *, batch_size=64):
    """The `Measured` of an `Archive`: 16 kB an image."""
    found, said = [], time.monotonic()
    for batch in archive.batches(batch_size):
        found.append([part.cpu() for part in network(batch)])
        if time.monotonic() - said > 30:
            said = time.monotonic()
            log.info("%s: %d of %d images", archive.path.name, len(found) * batch_size, len(archive))
    return Measured(*(torch.cat(parts) for parts in zip(*found)))


def scores(archives, network, *, batch_size=64):
    """All numbers of `Archives` by a `Network`: a dict.

    scores   {name: float}: fid, sfid, is_<network>, precision_<network>, recall_<network>; without the published
             weights fid and sfid are fd_<network> and sfd_<network>
    images, reference_images   how many images there were of each
    notes    sentences on what was left out and why, and on too few images
    """
    generated, real, known = archives
    for kind, statistics in known.items():
        if len(statistics.mean) != network.dims[kind]:
            raise ValueError(
                f"{real.path}: {_listed(STATISTICS[kind])} are of {len(statistics.mean)} dimensions; "
                f"{network.name} has {network.dims[kind]} there"
            )
    ours = measure(generated, network, batch_size=batch_size)
    theirs = measure(real, network, batch_size=batch_size) if real else None
    fid, found, notes = frechet_name(network.name), {}, []
    for kind, name in (("pool", fid), ("spatial", f"s{fid}")):
        features = getattr(ours, kind)
        if kind in known:
            found[name] = gaussian.frechet_from_features(features, *known[kind][:2])
        elif real:
            found[name] = gaussian.frechet_from_features(features, getattr(theirs, kind))
        else:
            notes.append(f"no {name}: {real.path} holds neither {_listed(STATISTICS[kind])} nor arr_0")
    parts = [inception_score(network.probabilities(part), splits=1)[0] for part in ours.pool.split(PART)]
    found[f"is_{network.name}"] = sum(parts) / len(parts)
    if real:
        both = precision_recall(*(side.pool.to(network.device) for side in (ours, theirs)), k=NEIGHBOURS)
        found |= {f"precision_{network.name}": both[0], f"recall_{network.name}": both[1]}
    else:
        notes.append(f"no precision, no recall: {real.path} holds no images (arr_0)")
    notes.append(sample_size_warning(len(generated), ours.pool.shape[1]))
    if "pool" not in known:
        notes.append(sample_size_warning(len(real), ours.pool.shape[1], what="real images"))
    return {
        "scores": found,
        "images": len(generated),
        "reference_images": len(real),
        "notes": [note for note in notes if note],
    }


def _header(file):
    """Shape, whether it lies column by column, and dtype of an .npy; nothing is unpickled."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"its format is {version}; arrays of plain numbers have {_listed(map(str, readers))}")
    return readers[version](file)


def _listed(names):
    return ", ".join(names) or "nothing"
