"""MS-COCO 2014 with its captions, as U-ViT's text-to-image configuration uses it (Lin et al. 2014)."""

import json
from collections import defaultdict
from pathlib import Path

from . import official
from .base import fail, one_of
from .files import ImageFiles
from .table import Row

SOURCE = "https://cocodataset.org/#download (2014 images and annotations)"
IMAGES = {"train": 82_783, "val": 40_504}


class MSCOCO(ImageFiles):
    """Photographs, each with five captions or a few more, without labels; in the order of their numbers.

    `captions` is a list of lists: every caption of each image, in the order of the annotations.

    Args:
        path: holds annotations/captions_train2014.json, train2014/COCO_train2014_000000000009.jpg ..., and the
            same for val2014.
        split: 'train' (82,783 images) or 'val' (40,504).
        upscale: whether the few images smaller than `resolution` are enlarged.
        options: of `files.ImageFiles`.
    Raises:
        ValueError: for annotations that are damaged, and all images without a caption or a file.
    """

    def __init__(self, path, resolution=256, split="train", channels=3, *, upscale=True, **options):
        root, part = Path(path).expanduser(), f"{one_of('split', split, IMAGES)}2014"
        table = official.there(root, "MS-COCO 2014", SOURCE, f"annotations/captions_{part}.json")
        folder = official.there(root, "MS-COCO 2014", SOURCE, part)
        names, captions = _read(table)
        official.compare("mscoco", f"images in {table.name}", len(names), IMAGES[split])
        rows = [Row(names[number], f"{table.name}: image {number}") for number in sorted(names)]
        fail(str(table), official.doubles(rows))
        official.locate(root, rows, [folder])
        super().__init__(root, rows, resolution, channels, name="mscoco", upscale=upscale, **options)
        self.captions = [captions[number] for number in sorted(names)]


def _read(table):
    """({image number: file name}, {image number: captions}) of an annotation file."""
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = defaultdict(list)
        for note in content["annotations"]:
            captions[note["image_id"]].append(note["caption"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{table}: expected COCO captions, {{'images': [{{'id', 'file_name'}}], 'annotations': "
                         f"[{{'image_id', 'caption'}}]}} ({type(error).__name__}: {error})") from error
    problems = [f"{names[number]} (image {number}) has no caption" for number in names if number not in captions]
    problems += [f"captions of an unknown image {number}" for number in captions if number not in names]
    fail(str(table), problems)
    return names, captions
