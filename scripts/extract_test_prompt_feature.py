"""The states of prompts, one per line of a text file, packed in one .npz: `prompts` (N,), `states` (N, L, D), `mask` (N, L).

    python scripts/extract_test_prompt_feature.py --config=configs/mscoco_uvit_small.py --input_path=prompts.txt

U-ViT's script writes a pickle for each of twelve built-in prompts; this file holds plain arrays, which can be read without
running anything: np.load(path, allow_pickle=False).
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from libs import cli, pipeline  # noqa: E402


def extract(config, input_path, output_path, batch_size):
    if not input_path:
        raise ValueError("--input_path is missing: a text file with one prompt per line")
    prompts = [line.strip() for line in Path(input_path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{input_path}: no prompts; expected one per line")
    encoder = pipeline.text_encoder(config, "cuda" if torch.cuda.is_available() else "cpu")
    if encoder is None:
        raise ValueError("config.encoder is missing: this experiment takes no text")
    print(encoder.cut(prompts) or "every prompt fits the encoder")
    states = torch.cat([encoder.encode(prompts[i:i + batch_size]).cpu() for i in range(0, len(prompts), batch_size)])
    path = Path(output_path or Path(config.features.path) / "test_prompts.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.{os.getpid()}")
    with open(staging, "wb") as file:
        np.savez(file, prompts=np.array(prompts), states=states.float().numpy(),
                 mask=encoder.mask(prompts).numpy(force=True))
    staging.replace(path)
    print(f"{path}: states of {len(prompts)} prompts, {' x '.join(map(str, encoder.shape))} each")


if __name__ == "__main__":
    if not any(option.startswith("--config=") for option in sys.argv):
        sys.argv.insert(1, f"--config={ROOT / 'configs' / 'mscoco_uvit_small.py'}")
    cli.main(extract, input_path=("", "text file, one prompt per line"), batch_size=(64, "prompts per call of the encoder", 1),
             output_path=("", "the .npz file; by default <config.features.path>/test_prompts.npz"))
