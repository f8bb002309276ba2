"""Images and their masks in two folders, found by their names."""

from collections import defaultdict
from pathlib import PurePosixPath

from .folder import Folder
from .paths import LINK
from .scan import folder_rows, holds_images, images_in, look, visible
from .table import Row

SHOWN = 10  # names in one message


class ImageMask(Folder):
    """Images with a mask each: path/images/Img_001.jpg with path/masks/seg_001.png.

    The two folders lie in `path` itself, where folders below them are classes, alike in both (images/a/1.png and
    masks/a/1.png); or in a folder of each class (a/images/1.png, a/masks/1.png); all this also below train/, val/, test/.
    A mask may have another extension than its image.

    Args:
        images_folder, masks_folder: their names.
        image_prefix, mask_prefix: what names of images and of masks begin with and do not share, such as 'Img_' and 'seg_'; ''
            is nothing.
        path, resolution, channels, split, options: as in `folder.Folder`; there is no table, hence no column of it.
    Raises:
        ValueError: for all faults of the structure at once: images without a mask, masks without an image, several of one name.
    """

    def __init__(self, path, resolution, channels=3, split="", *, images_folder="images", masks_folder="masks", image_prefix="",
                 mask_prefix="", **options):
        if not images_folder or not masks_folder or images_folder == masks_folder:
            raise ValueError(f"images_folder={images_folder!r}, masks_folder={masks_folder!r}: expected the names of two folders")
        self.folders = {images_folder: image_prefix, masks_folder: mask_prefix}
        super().__init__(path, resolution, channels, split, **options)

    def _find(self, path, columns, follow_links):
        return look(path, columns, follow_links=follow_links, read=self._pairs)

    def _pairs(self, folder, prefix, columns, inside, problems, classes):
        """(rows, fields) of a folder with images and masks, or of such folders of classes, as `scan.folder_rows`."""
        images, masks = self.folders
        below = [f for f in visible(folder) if f.is_dir()]
        of_classes = [f for f in below if any((f / name).is_dir() for name in self.folders)]
        labelled = not any((folder / name).is_dir() for name in self.folders)
        if not labelled and of_classes:
            problems.append(f"{prefix}{of_classes[0].name}/ has folders of its own beside {prefix}{images}/: give each class a "
                            f"folder with {images!r} and {masks!r}, or put the classes below these")
        elif labelled:
            problems += [f"{prefix}{f.name}: images, but no folder {images!r} that holds them"
                         for f in below if f not in of_classes and holds_images(f)]
            if not of_classes:
                problems.append(f"{prefix or 'data'}: no folders {images!r} and {masks!r}, neither here nor in a folder of "
                                "each class")
        places = [(f, f"{prefix}{f.name}/", f.name) for f in of_classes] if labelled else [(folder, prefix, "")]
        labelled = labelled and bool(columns.label)
        rows, there, fields = [], [], {"mask"} | ({"label"} if labelled else set())
        for place, before, label in places:
            faults = [fault for name in self.folders if (fault := _fault(place / name, f"{before}{name}", inside))]
            problems += faults
            if faults:
                continue
            if label:
                found = [Row(name, name, label=label if labelled else "")
                         for name in images_in(place / images, f"{before}{images}/", inside, problems)]
                classes |= {label} if labelled else set()
            else:
                found, more = folder_rows(place / images, f"{before}{images}/", columns, inside, problems, classes)
                fields |= more
            there += images_in(place / masks, f"{before}{masks}/", inside, problems)
            rows += found
        self._match(rows, there, problems)
        return rows, fields

    def _match(self, rows, masks, problems):
        """Give each row its mask."""
        images_of, masks_of = defaultdict(list), defaultdict(list)
        for row in rows:
            images_of[self._key(row.name, 0)].append(row.name)
        for name in masks:
            masks_of[self._key(name, 1)].append(name)
        for row in rows:
            row.mask = next(iter(masks_of[self._key(row.name, 0)]), "")
        problems += [f"{found[0]}: {len(found)} masks: {', '.join(found)}; keep one"
                     for key, found in masks_of.items() if len(found) > 1]
        problems += [f"{masks_of[key][0]}: the mask of {len(found)} images: {', '.join(found)}; rename them"
                     for key, found in images_of.items() if len(found) > 1 and masks_of[key]]
        alone = [name for key, found in images_of.items() if not masks_of[key] for name in found]
        widows = [name for key, found in masks_of.items() if key not in images_of for name in found]
        for what, other, names, kind in (("image", "a mask", alone, 1), ("mask", "an image", widows, 0)):
            if names:
                problems.append(f"{len(names)} {what}{'s' * (len(names) > 1)} without {other}: {_listed(names)} "
                                f"(expected {self._expected(names[0], kind)})")

    def _key(self, name, kind):
        """What an image (kind 0) and its mask (1) have in common: the folders around theirs, those below, the bare name."""
        folder, prefix = list(self.folders.items())[kind]
        around, _, rest = f"/{name}".partition(f"/{folder}/")
        path = PurePosixPath(rest)
        return around, str(path.parent), path.stem.removeprefix(prefix)

    def _expected(self, name, kind):
        """Where the counterpart of a file should be."""
        around, parent, stem = self._key(name, 1 - kind)
        folder, prefix = list(self.folders.items())[kind]
        hint = "" if any(self.folders.values()) else "; see image_prefix, mask_prefix"
        return f"{(PurePosixPath(around) / folder / parent).as_posix().lstrip('/')}/{prefix}{stem}.*{hint}"


def _fault(folder, name, inside):
    if not folder.is_dir():
        return f"{name}/ is missing"
    return f"{name} {LINK}" if inside.escapes(str(folder)) else ""


def _listed(names):
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
