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

Med-Art's tables (FID, KID, KFD on Kvasir, HFD on skin lesions) in these names: FID is `fid`; KID is `kid_inception`, in the same
unit (0.012 is 0.012; `kid_subsets_inception` is its mean over subsets); KFD and HFD, Fréchet distances in a network of the domain,
are `fd_<network>`: `fd_classifier-<data>` of a network that scripts/train_feature_network.py trained, `fd_timm_...` or
`fd_torchvision_...` of a backbone. Med-Art's own network is not among its published files, so such numbers compare only among runs
that were judged by the same one.

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
