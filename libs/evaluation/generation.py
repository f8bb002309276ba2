"""Generated images: exactly N over all processes, image i depending on (seed, i) alone, and where they go."""

import io
import logging
import os
import shutil
import time
import zipfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from libs import files
from libs.evaluation import listing
from libs.pipeline import NotFinite, to_uint8


AT_LEAST = 8  # batches, where there are as many images
FEW = 64  # images, the most of a preview: no progress is told of these
TELL = 20  # seconds between two lines of the log, where the output is no terminal


def generate(run, pipeline, cond, n, *, seed, batch_size, without=(), only=None, timing=None):
    """This process's share of images 0 .. n-1, or of the images `only`, in batches.

    Processes take whole batches in turn, so that an image is in the same batch, and rounded the same, for any number of them.

    Args:
        run: engine.Run.
        cond: conditions with n rows, see pipeline.draw_conditions.
        batch_size: images per network call on each process; fewer where so few are asked that most processes would idle.
        without: indices that are not wanted (they are there already); a batch of others is made whole, for the same reason.
        only: rising indices of the images that are wanted, put into batches by themselves.
        timing: a `Timing` that measures this.

    Yields:
        (indices, images): list of int and uint8 Tensor (b, C, H, W) on the CPU.
    """
    wanted = list(range(n)) if only is None else list(only)
    size = min(batch_size, max(1, -(-len(wanted) // AT_LEAST)))
    batches = [wanted[begin:begin + size] for begin in range(0, len(wanted), size)][run.rank::run.world]
    batches = [indices for indices in batches if not all(index in without for index in indices)]
    for indices in _told(run, batches) if len(wanted) > FEW and run.is_main else batches:
        yield indices, make(run, pipeline, cond, indices, seed=seed, timing=timing)


def make(run, pipeline, cond, indices, *, seed, timing=None):
    """Images `indices` of a seed in one batch: uint8 Tensor (b, C, H, W) on the CPU.

    Raises:
        NotFinite: an image is nan or infinite somewhere; names image, class, description and the step of the
            sampler.
    """
    try:
        with timing.batch(pipeline.net, len(indices)) if timing else nullcontext(), run.accelerator.autocast():
            own = {key: value[indices] for key, value in cond.items()}
            return to_uint8(pipeline(own, seed=seed, indices=indices))
    except NotFinite as error:
        texts = getattr(cond.get("text"), "texts", None)
        if not (texts and error.rows):
            raise
        raise NotFinite(f"{error}. Its description: {texts[indices[error.rows[0]]]!r}", error.rows) from None


def _told(run, batches):
    """The batches, with a bar of their images; or where the output is no terminal with a line in the log now and then."""
    total, done, begun = sum(map(len, batches)), 0, time.monotonic()
    said, own = begun, f" of this process (of {run.world})" if run.world > 1 else ""
    with tqdm(total=total, unit="image", leave=False, disable=None) as bar:
        for indices in batches:
            yield indices
            done += len(indices)
            bar.update(len(indices))
            now = time.monotonic()
            if bar.disable and now - said > TELL and done < total:
                said = now
                logging.info("%d of %d images%s, %.2g s each", done, total, own, (now - begun) / done)


_UNKNOWN = {"label": "", "prompt": "", "sampler": ""}  # what is said of an image where nothing is known of it


class Timing:
    """How long images take, by one definition wherever it is said.

    A batch counts from its conditions and noise until its images lie on the CPU, decoding included; writing files is not in it.
    Its sampling counts from the first call of the network to the end of the last one, with the sampler's and the guidance's
    arithmetic between them, but without encoding conditions before and decoding after; on a GPU by the GPU's own clock.

    Attributes: images, batches, seconds, sampling (seconds): sums over the batches of this process; largest: images in a batch;
    evaluated: rows of all batches that the network was given, of which guidance takes two for an image.
    """

    def __init__(self):
        self.images, self.batches, self.seconds, self.sampling, self.largest = 0, 0, 0.0, 0.0, 0
        self.evaluated = 0

    @contextmanager
    def batch(self, net, size):
        """Measure what is done within as one batch of `size` images, whose last step waits for the device."""
        marks, clock = [], _event if next(net.parameters()).is_cuda else time.perf_counter

        def before(_, inputs):
            self.evaluated += len(inputs[0])
            if not marks:
                marks.append(clock())

        hooks = [net.register_forward_pre_hook(before),
                 net.register_forward_hook(lambda *_: marks.__setitem__(slice(1, None), [clock()]))]
        begun = time.perf_counter()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.seconds += time.perf_counter() - begun
        self.sampling += _between(*marks) if marks else 0.0
        self.images, self.batches, self.largest = self.images + size, self.batches + 1, max(self.largest, size)

    def told(self, run, steps, *, what="image"):
        """The times of all processes in words, '' where no image was made; called by every process. what: 'draw' with a filter.

        s/image: seconds of the process that took longest over the images that all of them made. ms/step: all seconds of
        sampling over all batches and `steps`.
        """
        own = torch.tensor([[self.images, self.batches, self.seconds, self.sampling, self.largest]], dtype=torch.float64)
        images, batches, seconds, sampling, largest = run.gather_rows(own).T
        if not images.sum():
            return ""
        count, longest = int(images.sum()), float(seconds.max())
        each = 1000 * float(sampling.sum() / batches.sum()) / steps
        several = f" on {run.world} processes" if run.world > 1 else ""
        return (f"{count} {what}s, {steps} steps{several}: {longest:.1f} s, {longest / count:.3g} s/{what}, {each:.3g} ms/step "
                f"(one batch of {int(largest.max())}; decoding not included)")

    def measured(self, run):
        """{'seconds_per_image', 'evaluations_per_image', 'batch'} over all processes, {} where no image was made; called by
        every process. Seconds are those of `told`."""
        own = torch.tensor([[self.images, self.seconds, self.evaluated, self.largest]], dtype=torch.float64)
        images, seconds, evaluated, largest = run.gather_rows(own).T
        count = float(images.sum())
        return {"seconds_per_image": float(seconds.max()) / count, "evaluations_per_image": float(evaluated.sum()) / count,
                "batch": int(largest.max())} if count else {}


def _event():
    """This moment in the queue of the GPU."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin, end):
    return begin.elapsed_time(end) / 1000 if isinstance(begin, torch.cuda.Event) else end - begin


def generate_all(run, pipeline, cond, n, *, seed, batch_size):
    """All images 0 .. n-1 on every process: uint8 Tensor (n, C, H, W). For few images, such as a preview.

    Raises:
        NotFinite: an image is nan or infinite somewhere; on every process, so that none waits for another.
    """
    parts, fault = [], ""
    try:
        parts = list(generate(run, pipeline, cond, n, seed=seed, batch_size=batch_size))
    except NotFinite as error:
        fault = str(error)
    raise_together(run, fault)
    images = torch.cat([part for _, part in parts] or [torch.empty(0, *pipeline.image_shape, dtype=torch.uint8)])
    indices = torch.tensor([i for part, _ in parts for i in part], dtype=torch.int64)
    return run.gather_rows(images)[run.gather_rows(indices).argsort()]


def raise_together(run, fault):
    """NotFinite on every process where one of them met a `fault`, a text that is '' elsewhere; called by
    every process."""
    if int(run.gather_rows(torch.tensor([int(bool(fault))])).sum()):
        raise NotFinite(fault or "another process made pixels that are not finite (nan or infinite)")


class Sink:
    """Where the images of an evaluation go beside the feature networks: PNG files, an `.npz`, or nowhere.

    with Sink(run, folder=..., npz=..., shape=(n, C, H, W)) as sink: sink.add(indices, images)

    A folder has a table in the end, metadata.csv, of exactly these images; what an earlier one of ours lists
    beyond them is deleted.

    Where a filter left images out, `sink.kept` (rising indices of those that came) closes the gaps in the archive.

    The archive appears when all images are there; until then they lie in a file beside it, which all processes write to, so that
    memory does not grow with n, and which is removed where the evaluation fails.

    Args:
        folder: for `<index>.png`; '' for none.
        npz: path of an archive with `arr_0` uint8 (n, H, W, C), image i at row i, as the ADM suite reads it; '' for none.
        shape: of all images, which an archive and a table need to know beforehand.
        facts: index -> {name: value} of an image of the folder, with 'label' and 'prompt' ('' where there is
            none) and 'sampler'.

    Raises:
        ValueError: `npz` is a folder; `folder` holds files of somebody else that would be replaced. OSError:
            it cannot be written, or the disk is too small.
    """

    def __init__(self, run, *, folder="", npz="", shape=(), facts=None):
        self.run, self.folder, self.file, self.kept = run, Path(folder) if folder else None, None, None
        self.facts, self.before, self.count = facts or (lambda index: _UNKNOWN), [], shape[0] if shape else 0
        if self.folder:
            self.before = run.main_first(self._begin)
        if npz:
            n, channels, height, width = shape
            self.npz, self.shape, self.row = Path(npz), (n, height, width, channels), height * width * channels
            self.staging = self.npz.with_name(f".staging-{self.npz.stem}.npy")
            self.file = run.main_first(self._opened)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.folder and kind is None:
            self.run.barrier()
            if self.run.is_main:
                rows = [{"file_name": _name(index), **self.facts(index)} for index in (
                    range(self.count) if self.kept is None else self.kept)]
                listing.finish(self.folder, rows, before=self.before)
        if self.file is None:
            return
        self.file.close()
        if kind is None:
            self.run.barrier()
        if self.run.is_main:
            try:
                if kind is None:
                    with files.disk_errors(self.npz):
                        self._archive()
            finally:
                self.staging.unlink(missing_ok=True)
        if kind is None:
            self.run.barrier()

    def add(self, indices, images):
        """Take in uint8 images (b, C, H, W)."""
        for index, image in zip(indices, images):
            if self.folder:
                save_png(self.folder / _name(index), image, **self.facts(index))
            if self.file:
                with files.disk_errors(self.staging):
                    self.file.seek(self.begin + index * self.row)
                    self.file.write(image.permute(1, 2, 0).contiguous().numpy())

    def _begin(self):
        """The files of earlier images in the folder; the main process notes which are coming."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.run.is_main:
            return []
        names = [_name(index) for index in range(self.count)]
        return [*listing.begin(self.folder, names, lambda path: "sampler" in (read_facts(path) or {})), *names]

    def _opened(self):
        """The file of the array, which the main process begins with what numpy writes before the numbers."""
        if self.npz.is_dir():
            raise ValueError(f"{self.npz} is a folder: --npz (config.sample.npz) names a file, such as {self.npz / 'samples.npz'}")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        self.begin = header.tell()
        if not self.run.is_main:
            return open(self.staging, "r+b")
        self.npz.parent.mkdir(parents=True, exist_ok=True)
        needed, free = 2 * self.shape[0] * self.row, shutil.disk_usage(self.npz.parent).free
        if needed > free:
            raise OSError(f"{self.npz}: {self.shape[0]} images of {self.row} bytes, twice while the archive is written, need "
                          f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")
        file = open(self.staging, "wb")
        file.write(header.getvalue())
        file.flush()
        return file

    def _close_gaps(self):
        whole = np.load(self.staging, mmap_mode="r", allow_pickle=False)
        packed = self.staging.with_name(f"{self.staging.stem}-packed.npy")
        rows = np.lib.format.open_memmap(packed, mode="w+", dtype=np.uint8, shape=(len(self.kept), *self.shape[1:]))
        for row, index in enumerate(self.kept):
            rows[row] = whole[index]
        rows.flush()
        del whole, rows
        packed.replace(self.staging)

    def _archive(self):
        staging = self.staging.with_suffix(".npz")
        if self.kept is not None and len(self.kept) < self.shape[0]:
            self._close_gaps()
        with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.write(self.staging, "arr_0.npy")
        staging.replace(self.npz)


def _name(index):
    """The file of an image of an evaluation."""
    return f"{index:06d}.png"


def nhwc(images):
    """uint8 (N, C, H, W) -> array (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def save_npz(path, **arrays):
    """Write an `.npz` in one step: a reader sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".staging-{path.stem}-{os.getpid()}.npz")
    try:
        with files.disk_errors(path):
            np.savez(staging, **arrays)
            staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def save_png(path, image, **text):
    """Write a uint8 image (C, H, W), 1 or 3 channels, with `text` in the file's metadata, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, str(value))
    array, path = image.permute(1, 2, 0).numpy(), Path(path)
    staging = path.with_name(f".staging-{path.name}")
    try:
        with files.disk_errors(path):
            picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
            picture.save(staging, format="PNG", pnginfo=info)
            staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def facts_there(path, text, *, apart=()):
    """The text in the metadata of a PNG, {name: value}, where it is exactly `text` but for entries called `apart`; else None."""
    found = read_facts(path)
    if found is None or {key: value for key, value in found.items() if key not in apart} != {
            key: str(value) for key, value in text.items()}:
        return None
    return found


def read_facts(path):
    """The text in the metadata of a PNG, {name: value}; None where the file is not there or cannot be read."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            image.load()
            return dict(image.text)
    except (OSError, ValueError, AttributeError, SyntaxError):
        return None
