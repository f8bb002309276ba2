"""The states of the empty text as U-ViT's users keep them: empty_context.npy, float32 (L, D).

    python scripts/extract_empty_feature.py --config=configs/mscoco_uvit_small.py

A feature store holds them too, so that training does not need this file.
"""

import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from libs import cli, pipeline  # noqa: E402


def extract(config, output_path):
    encoder = pipeline.text_encoder(config)
    if encoder is None:
        raise ValueError("config.encoder is missing: this experiment takes no text")
    path = Path(output_path or Path(config.features.path) / "empty_context.npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.{os.getpid()}")
    with open(staging, "wb") as file:
        np.save(file, encoder.empty.float().numpy(force=True))
    staging.replace(path)
    print(f"{path}: states of the empty text, {' x '.join(map(str, encoder.shape))}")


if __name__ == "__main__":
    if not any(option.startswith("--config=") for option in sys.argv):
        sys.argv.insert(1, f"--config={ROOT / 'configs' / 'mscoco_uvit_small.py'}")
    cli.main(extract, output_path=("", "the .npy file; by default <config.features.path>/empty_context.npy"))
