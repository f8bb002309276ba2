"""The evaluation suite of ADM (guided-diffusion) over .npz archives: FID, sFID, Inception Score, precision, recall.

    python scripts/adm_suite.py --reference=VIRTUAL_imagenet256_labeled.npz --samples=samples.npz --output=scores.json

Samples hold `arr_0`, uint8 (N, H, W, C), as `--npz=samples.npz` of eval*.py writes them; a reference `arr_0`, statistics
`mu`, `sigma`, `mu_s`, `sigma_s`, or both. libs/metrics/adm_suite.py says what is computed and how.

The check to make, with the published weights and archives: admnet_guided_upsampled_imagenet256.npz against
VIRTUAL_imagenet256_labeled.npz gives IS 215.8370, FID 3.9426, sFID 6.1404, precision 0.8265, recall 0.5309. It has not been
made here. 50,000 images need about 4 GB of memory, by estimate; images are read in batches.

`--weights=random` tries the path without the weights; its numbers mean nothing and say so by their names.
"""

import json
import sys
from pathlib import Path

import torch
from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli  # noqa: E402
from libs.engine import checkpoint  # noqa: E402
from libs.metrics import adm_suite  # noqa: E402

flags.DEFINE_string("reference", None, ".npz of the reference: images (arr_0), statistics (mu, sigma, mu_s, sigma_s) or both",
                    required=True)
flags.DEFINE_string("samples", None, ".npz of generated images (arr_0)", required=True)
flags.DEFINE_string("weights", "", "file of pytorch-fid's Inception, or 'random'; by default torch hub's cache or the network")
flags.DEFINE_string("output", "", ".json to write the numbers to; by default none")
flags.DEFINE_enum("device", "", ["", "cpu", "cuda"], "by default cuda where there is one, else cpu")
flags.DEFINE_integer("batch_size", 64, "images in one call of the network", lower_bound=1)

TITLES = {"fid": "FID", "sfid": "sFID", "fd": "Fréchet distance", "sfd": "spatial Fréchet distance",
          "is": "Inception Score", "precision": "precision", "recall": "recall"}


def evaluate(reference, samples, weights, device, batch_size):
    archives = adm_suite.open_archives(reference, samples)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda, but torch finds no CUDA device here; leave it out for the CPU")
    network = adm_suite.Network(weights=weights, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {"reference": str(reference), "samples": str(samples), "features": network.name,
            **adm_suite.scores(archives, network, batch_size=batch_size)}


def main(argv):
    given = flags.FLAGS
    found = evaluate(given.reference, given.samples, given.weights, given.device, given.batch_size)
    if given.output:
        Path(given.output).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(given.output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{found['images']} images against {found['reference_images'] or 'statistics'} of {found['reference']}, "
          f"features {found['features']}")
    for name, value in found["scores"].items():
        title = TITLES[name.split("_")[0]]
        print(f"  {title:24s} {value:12.6f}   {name}")
    for note in found["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    cli.run(main)
