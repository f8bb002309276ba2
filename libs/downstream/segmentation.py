"""What a segmentation network is worth: the Dice coefficient per class of the masks, and its mean over the foreground.

Kept of a training is the Dice of every test image and class, nan where neither its mask nor the network has the class. A
class's score is the mean over the images that have it; the overall score is the mean of those of the foreground, all classes
but the first.
"""

import numpy as np
import torch

from libs import metrics
from libs.downstream import training

OVERALL = PER_CLASS = ("dice",)


def names(classes):
    """[(metric, class name)] in the order of the columns of `scores`; '' is the mean over the foreground."""
    return [("dice", "")] + [("dice", name) for name in classes]


def scores(values, there, weights):
    """The scores of one network, for each of R weightings of the test images: float64 (R, 1 + K), columns as in `names`.

    Where a weighting leaves out a class that the test masks have, its score and the mean are nan: a mean over fewer classes is
    another number. A class of no test mask is left out of the mean.

    Args:
        values: (N, K), Dice of each image and class. there: (K,) of bool, the classes that the test masks have.
        weights: (R, N), how often each image counts.
    """
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_class = weights @ np.where(known, values, 0) / (weights @ known)
    foreground = np.flatnonzero(there)
    foreground = foreground[foreground > 0]
    return np.concatenate([of_class[:, foreground].mean(1, keepdims=True), of_class], 1)


def dice(net, pixels, masks, *, device="cpu", threads=1):
    """Dice of every image and class, by a trained network: float32 (N, K).

    pixels: uint8 (N, C, H, W). masks: uint8 (N, H, W).
    """
    found = torch.cat([part.argmax(1) for part in training.outputs(net, pixels, device=device, threads=threads)])
    return metrics.dice(masks.long(), found, net.arguments["classes"]).float()


def problems(real, test, synthetic):
    """What makes a study of segmentation impossible, as sentences; `Images` with masks each."""
    found = [f"no {what} mask has anything but {real.mask_names[0]!r}: are config.dataset.mask_values those of the files?"
             for what, images in (("training", real), ("test", test)) if not sum(list(images.pairs().values())[1:])]
    return found if len(synthetic) else [*found, "there is no synthetic pair"]


def few(test, least=30):
    """Warnings about classes that few test masks have, or none."""
    counts = test.pairs()
    small = [f"{name} {count}" for name, count in counts.items() if 0 < count < least]
    none = [name for name, count in counts.items() if not count]
    return [f"classes in {what}: {', '.join(which)}; {so}" for what, which, so in (
        (f"fewer than {least} test masks", small, "their scores move much with each image"),
        ("no test mask", none, "they do not count in the mean")) if which]


def shared(synthetic, test):
    """Warnings about synthetic pairs whose mask, not all background, is that of a test image."""
    tested = {mask: name for mask, name, any_there in zip(test.mask_hashes, test.names, test.masks.flatten(1).any(1)) if any_there}
    found = [f"{name} is that of {tested[mask]}" for name, mask in zip(synthetic.names, synthetic.mask_hashes) if mask in tested]
    return [f"{len(found)} of {len(synthetic)} synthetic pairs have the mask of a test image, such as {found[0]}: a generator that "
            "is asked for those tells the networks what they are tested on"] if found else []


def missing(synthetic):
    """Warnings about classes that no synthetic mask has."""
    none = [name for name, count in synthetic.pairs().items() if not count]
    return [f"classes in no synthetic mask: {', '.join(none)}; a network of synthetic pairs alone cannot know them"] if none else []
