"""Images to features: one call, whichever network looks at them.

    extractor('inception')                        pytorch-fid's Inception, 2048 features
    extractor('dinov2')                           ViT-B/14 DINOv2 through timm at 224 pixels, 768 features
    extractor('timm:resnet50.a1_in1k')            any timm model
    extractor('torchvision:densenet121')          any torchvision classifier that ends in a linear layer
    extractor('timm:resnet50@cells.safetensors')  the same with weights of one's own: timm, torchvision, inception, dinov2
    extractor('classifier:workdir/features')      a network trained on the data at hand (classifier.py); or its folder alone
    extractor('colour')                           no network: mean and deviation of each colour channel

`weights` (in a name: what follows '@') may be a local file or 'random'; the extractor's name then says so, and
belongs in the metric's name. Images are uint8 (N, C, H, W) with 1 or 3 channels, as they would be stored: a
reported number must not depend on whether images went through a file. Resizing is antialiased (Parmar et al.
2022) except for Inception, whose published numbers are not.
Arithmetic is float32, whatever the caller trains in: reduced precision moves a Fréchet distance.
"""

import contextlib
import difflib
import hashlib
from pathlib import Path

import torch
from torch.nn import functional as F

from . import classifier, networks


class Extractor:
    """Callable: uint8 images (N, C, H, W) -> float32 features (N, dims), on its device.

    `name` goes into the metric's name, `dims` is the length of a feature, `classes` the list of names of the
    classes of `probabilities` (their numbers where no names are known; None where the network has no
    classes), `fingerprint` a hash of weights and preprocessing, for caches.
    """

    def __init__(self, built, *, device="cpu", classes=()):
        self.name = built.name
        self.device = torch.device(device)
        self.built = built
        self.module = built.module.to(self.device, torch.float32, memory_format=torch.channels_last)
        self.module.eval().requires_grad_(False)
        mean = torch.tensor(built.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(built.std, device=self.device).view(1, -1, 1, 1)
        self.normalise = lambda images: (images - mean) / std
        side = built.size or 8
        features, logits = self._run(torch.zeros(1, built.channels, side, side, dtype=torch.uint8))
        self.dims = features.shape[1]
        self.classes = None if logits is None else list(classes) or [str(k) for k in range(logits.shape[1])]
        self.fingerprint = _fingerprint(built)

    def __call__(self, images):
        """Features (N, dims)."""
        return self._run(images)[0]

    def probabilities(self, images):
        """Class probabilities (N, classes); ValueError where the network has no classes."""
        return self.both(images, required=True)[1]

    def both(self, images, *, required=False):
        """Features and class probabilities (None where there are no classes) in one pass."""
        features, logits = self._run(images)
        if logits is None and required:
            raise ValueError(f"{self.name} has no classes, so no class probabilities")
        return features, None if logits is None else logits.softmax(dim=1)

    def prepare(self, images):
        """The network's input for uint8 images: channels, range, size and normalisation."""
        check_images(images)
        images = images.to(self.device)
        if images.shape[1] == 1 and self.built.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.built.channels:
            raise ValueError(
                f"{self.name} takes images of {self.built.channels} channel; these have {images.shape[1]}"
            )
        images = images.to(torch.float32, memory_format=torch.channels_last) / 255
        size = (self.built.size, self.built.size)
        if self.built.size and images.shape[2:] != size:
            images = F.interpolate(
                images, size=size, mode=self.built.resize, align_corners=False, antialias=self.built.antialias
            )
        return self.normalise(images)

    @torch.inference_mode()
    def _run(self, images):
        with full_precision(self.device):
            features, logits = self.module(self.prepare(images))
        return features, logits


def extractor(name, *, device="cpu", weights="", **kwargs):
    """The `Extractor` of that name. ValueError for an unknown name, FileNotFoundError for missing weights.

    `weights`: '' for the published ones, a local file (.pth, .safetensors), or 'random' with `seed`. A file of another
    number of classes, as of a network fine-tuned on one's own, decides that number.
    """
    kind, _, model = name.partition(":")
    if not model and "/" in kind.partition("@")[0]:
        if Path(name).is_file():
            raise ValueError(f"features {name!r} is a file of weights; say of which network: timm:<model>@{name} or "
                             f"torchvision:<model>@{name}")
        kind, model = "classifier", name
    if kind != "classifier" and "@" in name:
        if weights:
            raise ValueError(f"{name!r} names its weights; weights={weights!r} cannot be given as well")
        name, _, weights = name.partition("@")
        kind, _, model = name.partition(":")
        if not weights or kind == "colour":
            raise ValueError(f"features {name!r}: expected such as timm:resnet50@/path/to/weights.safetensors")
    kinds = {
        "inception": lambda: networks.inception(weights=weights, **kwargs),
        "dinov2": lambda: networks.dinov2(weights=weights, **kwargs),
        "colour": lambda: networks.colour(**kwargs),
        "timm": lambda: networks.timm(model, weights=weights, **kwargs),
        "torchvision": lambda: networks.torchvision(model, weights=weights, **kwargs),
    }
    if kind == "classifier" and model:
        if weights:
            raise ValueError(f"{name!r} brings its own weights; weights={weights!r} cannot be given as well")
        network = classifier.load_classifier(model, **kwargs)
        return Extractor(classifier.built(network), device=device, classes=network.report["classes"])
    known = ["inception", "dinov2", "colour", "timm:<model>", "timm:<model>@<file>", "torchvision:<model>",
             "torchvision:<model>@<file>", "classifier:<folder>"]
    if kind not in kinds or (kind in ("timm", "torchvision")) != bool(model):
        close = difflib.get_close_matches(kind, [*kinds, "classifier"], n=1)
        raise ValueError(
            f"unknown features {name!r}; known are {', '.join(known)}"
            + (f". Did you mean {[k for k in known if k.startswith(close[0])][0]!r}?" if close else "")
        )
    return Extractor(kinds[kind](), device=device)


def extract(extractor, images, *, batch_size=64):
    """Features (N, dims) and probabilities or None, on the CPU, of a uint8 tensor or an iterable of such."""
    batches = images.split(batch_size) if torch.is_tensor(images) else images
    found = [
        tuple(None if part is None else part.cpu() for part in extractor.both(batch)) for batch in batches
    ]
    features = torch.cat([part for part, _ in found]) if found else torch.empty(0, extractor.dims)
    if extractor.classes is None:
        return features, None
    return features, torch.cat([part for _, part in found]) if found else torch.empty(
        0, len(extractor.classes)
    )


def check_images(images):
    """ValueError unless `images` is a uint8 tensor (N, 1 or 3, H, W)."""
    if not torch.is_tensor(images) or images.dtype != torch.uint8:
        kind = images.dtype if torch.is_tensor(images) else type(images).__name__
        raise ValueError(f"images are {kind}; expected a uint8 tensor (N, C, H, W) with values 0 to 255")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected (N, C, H, W) with 1 or 3 channels"
        )


def _fingerprint(built):
    digest = hashlib.sha256(repr([item for item in built if not isinstance(item, torch.nn.Module)]).encode())
    for key, value in built.module.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def full_precision(device):
    """Neither autocast nor TF32 inside: both are for training."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv
