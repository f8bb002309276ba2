"""Metrics of generated images: arrays in, numbers out.

    features           images -> features and class probabilities, by any of `networks` or `classifier`
    gaussian           Fréchet distance and streaming moments (FID with Inception features)
    kernel             kernel distance (KID)
    manifold           precision, recall, density, coverage
    neighbours         nearest real image of each generated one
    inception_score    Inception score, recognition of the class asked for
    intervals          bootstrap intervals, warnings about few images
    suite              all of them at once, under their reported names
    classifier         a small network trained on the data at hand
    segmenter          a small segmentation network trained on them, and the Dice coefficient
    adm_suite          the evaluations of guided-diffusion, over .npz archives

Nothing here knows where images come from; other rooms hand over tensors. Only `adm_suite` reads its archives.
"""

from .classifier import load_classifier, train_classifier
from .features import Extractor, extract, extractor
from .gaussian import Gaussian, Moments, frechet_distance, frechet_from_features, load_stats, save_stats
from .inception_score import inception_score, recognised
from .intervals import bootstrap, sample_size_warning
from .kernel import kid, kid_subsets
from .manifold import density_coverage, precision_recall
from .neighbours import nearest
from .segmenter import dice, dice_scores, load_segmenter, train_segmenter
from .suite import check_names, frechet_name, scores, scores_per_class, share, warnings

__all__ = [
    "Extractor",
    "Gaussian",
    "Moments",
    "bootstrap",
    "check_names",
    "density_coverage",
    "dice",
    "dice_scores",
    "extract",
    "extractor",
    "frechet_distance",
    "frechet_from_features",
    "frechet_name",
    "inception_score",
    "kid",
    "kid_subsets",
    "load_classifier",
    "load_segmenter",
    "load_stats",
    "nearest",
    "precision_recall",
    "recognised",
    "sample_size_warning",
    "save_stats",
    "scores",
    "scores_per_class",
    "share",
    "train_classifier",
    "train_segmenter",
    "warnings",
]
