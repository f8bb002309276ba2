"""Latents of ImageNet and of its mirrored images, under the name that U-ViT's users know.

    python scripts/extract_imagenet_feature.py --path=/path/to/imagenet
    accelerate launch --multi_gpu --num_processes 4 scripts/extract_imagenet_feature.py --path=... --resolution=512

It runs extract_feature.py with configs/imagenet256_uvit_huge.py or imagenet512_uvit_huge.py; the options of that script and
`--config.a.b=value` may be given too.
"""

import runpy
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent
CONFIGS = {size: SCRIPTS.parent / "configs" / f"imagenet{size}_uvit_huge.py" for size in ("256", "512")}


def arguments(given):
    """The options of extract_feature.py that stand for ours; the path may be written without --path=, as in the original."""
    named = [option if option.startswith("-") else f"--path={option}" for option in given]
    values = dict(option.lstrip("-").split("=", 1) for option in named if "=" in option)
    size = values.get("resolution", "256")
    if size not in CONFIGS:
        sys.exit(f"error: --resolution={size}: expected {' or '.join(CONFIGS)}; for another size use extract_feature.py "
                 "with a config of your own")
    others = [option.replace("--path=", "--config.dataset.path=", 1) if option.startswith("--path=") else option
              for option in named if not option.startswith(("--resolution=", "--config="))]
    return [f"--config={values.get('config', CONFIGS[size])}", *others]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    runpy.run_path(str(SCRIPTS / "extract_feature.py"), run_name="__main__")
