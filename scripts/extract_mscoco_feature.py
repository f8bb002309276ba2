"""Latents and CLIP states of MS-COCO 2014 and its captions, under the name that U-ViT's users know.

    python scripts/extract_mscoco_feature.py --split=train
    accelerate launch --multi_gpu --num_processes 4 scripts/extract_mscoco_feature.py --split=val

It runs extract_feature.py with configs/mscoco_uvit_small.py; the options of that script and `--config.a.b=value`, such as
`--config.dataset.path=/path/to/coco`, may be given too.
"""

import runpy
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent

if __name__ == "__main__":
    if not any(option.startswith("--config=") for option in sys.argv):
        sys.argv.insert(1, f"--config={SCRIPTS.parent / 'configs' / 'mscoco_uvit_small.py'}")
    runpy.run_path(str(SCRIPTS / "extract_feature.py"), run_name="__main__")
