"""Images and their masks in two folders or in one, found by their names."""

import re
from collections import defaultdict
from pathlib import PurePosixPath

from libs.names import escaped, visible

from .files import MASKS_APART
from .folder import Folder
from .mask_like import common_suffix
from .paths import LINK, natural
from .reading import EXTENSIONS
from .scan import folder_rows, holds_images, images_in, look, text_of
from .scan import visible as entries_of
from .table import Row

SHOWN = 10  # names in one message


class ImageMask(Folder):
    """Images with a mask each: path/images/Img_001.jpg with path/masks/seg_001.png.

    The two folders lie in `path` itself, where folders below them are classes, alike in both (images/a/1.png and
    masks/a/1.png); or in a folder of each class (a/images/1.png, a/masks/1.png); all this also below train/, val/, test/.
    A mask may have another extension than its image. Images and masks may also lie in one folder: with
    images_folder='', masks_folder='' and mask_suffix='_mask' the mask of benign/1.png is benign/1_mask.png.
    Of images_folder='', masks_folder='masks' the masks of benign/1.png lie in benign/masks/.

    Several masks of an image, 1_mask.png, 1_mask_1.png, 1_mask_2.png, are united: each pixel gets the last of
    their classes (the largest of their grey levels).

    Args:
        images_folder, masks_folder: their names; '' is the folder around, or the class folder.
        image_prefix, mask_prefix: what names of images and of masks begin with and do not share, such as 'Img_' and 'seg_'; ''
            is nothing.
        image_suffix, mask_suffix: what names of images and of masks end with and do not share, such as
            '_mask' or '@', with or without an extension; where masks of one folder differ from its images by
            nothing else, the extension, '.png'.
        path, resolution, channels, split, options: as in `folder.Folder`; there is no table, hence no column of it.
    Raises:
        ValueError: for all faults of the structure at once: images without a mask, masks without an image, several of one name.
    """

    MAY_HOLD_MASKS = False

    def __init__(self, path, resolution, channels=3, split="", *, images_folder="images", masks_folder="masks", image_prefix="",
                 mask_prefix="", image_suffix="", mask_suffix="", **options):
        self.folders, self.prefixes = (images_folder, masks_folder), (image_prefix, mask_prefix)
        self.suffixes = (image_suffix, mask_suffix)
        self.together = images_folder == masks_folder
        if self.together and self.prefixes[0] == self.prefixes[1] and image_suffix == mask_suffix:
            raise ValueError(f"images_folder={images_folder!r}, masks_folder={masks_folder!r}: expected the "
                             "names of two folders, or what tells masks from images in one, "
                             "--config.dataset.mask_suffix=_mask (or .png)")
        super().__init__(path, resolution, channels, split, **options)

    def _find(self, path, columns, follow_links):
        return look(path, columns, follow_links=follow_links, read=self._pairs,
                    ignore_files=self.ignore_files)

    def _pairs(self, folder, prefix, columns, walk):
        """(rows, fields) of a folder with images and masks, or of such folders of classes, as `scan.folder_rows`."""
        if "" in self.folders:
            return self._pairs_in_one(folder, prefix, columns, walk)
        images, masks = self.folders
        inside, problems, classes = walk.inside, walk.problems, walk.classes
        below = [f for f in entries_of(folder) if f.is_dir()]
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
                                f"each class{self._hint_of_one(folder, prefix, walk)}")
        places = [(f, f"{prefix}{f.name}/", f.name) for f in of_classes] if labelled else [(folder, prefix, "")]
        labelled = labelled and bool(columns.label)
        rows, there, fields = [], [], {"mask"} | ({"label"} if labelled else set())
        for place, before, label in places:
            self._pass_over(place, before, walk)
            faults = [fault for name in dict.fromkeys(self.folders)
                      if (fault := _fault(place / name, f"{before}{name}", inside))]
            problems += faults
            if faults:
                continue
            if label:
                found = [Row(name, name, label=label if labelled else "")
                         for name in images_in(place / images, f"{before}{images}/", walk)]
                classes |= {label} if labelled else set()
            else:
                found, more = folder_rows(place / images, f"{before}{images}/", columns, walk)
                fields |= more
            if self.together:
                there += [row.name for row in found if self._is_mask(row.name)]
                found = [row for row in found if not self._is_mask(row.name)]
            else:
                there += images_in(place / masks, f"{before}{masks}/", walk)
            rows += found
        self._match(rows, there, problems)
        return rows, fields

    def _pairs_in_one(self, folder, prefix, columns, walk):
        """As `_pairs`, where images, masks or both lie in the class folders (or the data folder)
        themselves."""
        rows, masks, empty = [], [], set()
        files = images_in(folder, prefix, walk)
        for name in files:
            (masks if self._is_mask(name) else rows).append(name)
        rows = [Row(name, name, label=self._label(name, prefix) if columns.label else "") for name in rows]
        rows.sort(key=lambda row: natural(row.label))
        loose = [row.name for row in rows if not row.label]
        if columns.label and len(loose) < len(rows):
            if loose:
                walk.problems.append(f"{len(loose)} images beside the class folders ({loose[0]} ...): move "
                                     "them into a class, or set label_column='' for no classes")
            walk.classes |= {row.label for row in rows} - {""}
            met = {PurePosixPath(name.removeprefix(prefix)).parts[0] for name in files}
            empty = {entry.name for entry in entries_of(folder) if entry.is_dir()} - met - set(self.folders)
            walk.classes |= empty
        self._match(rows, masks, walk.problems)
        return rows, {"mask"} | ({"label"} if walk.classes else set())

    def _label(self, name, prefix):
        parts = PurePosixPath(name.removeprefix(prefix)).parts[:-1]
        parts = [part for part in parts if part not in self.folders]
        return parts[0] if parts else ""

    def _is_mask(self, name):
        """Whether a file among images and masks is a mask, by its folder or by its name."""
        images, masks = self.folders
        folders = PurePosixPath(name).parts[:-1]
        if not self.together:
            return masks in folders if masks else images not in folders
        if self.prefixes[1] or self.suffixes[1]:
            return self._bare(name, 1)[2]
        return not self._bare(name, 0)[2]

    def _pass_over(self, place, before, walk):
        """Images beside the two folders, and further folders of images, go to `walk.passed`."""
        for entry in entries_of(place):
            if entry.name in self.folders or entry.name.lower() in ("train", "val", "test"):
                continue
            name = f"{before}{entry.name}"
            if entry.is_file() and entry.name.lower().endswith(EXTENSIONS):
                walk.passed.append(name)
            elif entry.is_file():
                walk.by_files.append(name)
            elif not before and entry.is_dir() and holds_images(entry):
                walk.passed.append(f"{name}/")

    def _match(self, rows, masks, problems):
        """Give each row its mask, or masks."""
        images_of, masks_of = defaultdict(list), defaultdict(list)
        for row in rows:
            images_of[self._key(row.name, 0)].append(row.name)
        for name in masks:
            masks_of[self._key(name, 1)].append(name)
        for row in rows:
            row.mask = MASKS_APART.join(sorted(masks_of[self._key(row.name, 0)], key=natural))
        problems += [f"{found[0]}: {len(found)} masks: {_told_apart(found)}; keep one"
                     for key, found in masks_of.items()
                     if len({self._bare(name, 1)[1] for name in found}) < len(found)]
        problems += [f"{masks_of[key][0]}: the mask of {len(found)} images: {_told_apart(found)}; rename them"
                     for key, found in images_of.items() if len(found) > 1 and masks_of[key]]
        alone = [name for key, found in images_of.items() if not masks_of[key] for name in found]
        widows = [name for key, found in masks_of.items() if key not in images_of for name in found]
        for what, other, names, kind in (("image", "a mask", alone, 1), ("mask", "an image", widows, 0)):
            if names:
                problems.append(f"{len(names)} {what}{'s' * (len(names) > 1)} without {other}: "
                                f"{text_of(names, SHOWN)} (expected {self._expected(names[0], kind)})")
        suffix = common_suffix([self._bare(name, 0)[0] for name in alone],
                               [PurePosixPath(name).stem for name in widows])
        if suffix and not any(self.suffixes):
            problems.append(f"the masks' names have {suffix!r} behind those of their images: "
                            f"--config.dataset.mask_suffix={suffix} pairs them")

    def _key(self, name, kind):
        """What an image (kind 0) and its mask (1) have in common: the folders around theirs and below, the
        bare name."""
        folder = self.folders[kind]
        around, _, rest = f"/{name}".partition(f"/{folder}/") if folder else ("", "", name)
        place = PurePosixPath(around.lstrip("/")) / PurePosixPath(rest).parent
        return visible(place.as_posix()), visible(self._bare(name, kind)[0])

    def _bare(self, name, kind):
        """(what an image, kind 0, and its mask, 1, share; '' or the number of a further mask; whether prefix
        and suffix are there)."""
        path, prefix, suffix = PurePosixPath(name), self.prefixes[kind], self.suffixes[kind]
        stem, number, whole = path.stem, "", True
        if suffix.lower().endswith(EXTENSIONS):
            whole = path.name.lower().endswith(suffix.lower())
            stem = path.name[:-len(suffix)] if whole else stem
        elif suffix:
            end = re.fullmatch(rf"(.*?){re.escape(suffix)}(?:[ _.-]?\(?(\d{{1,3}})\)?)?", stem)
            whole = bool(end)
            stem, number = (end[1], end[2] or "") if end else (stem, "")
        return stem.removeprefix(prefix), number, whole and stem.startswith(prefix)

    def _expected(self, name, kind):
        """Where the counterpart of a file should be."""
        place, stem = self._key(name, 1 - kind)
        folder, prefix, suffix = self.folders[kind], self.prefixes[kind], self.suffixes[kind]
        parent, around = PurePosixPath(place), ""
        if folder:
            other = self.folders[1 - kind]
            before, rest = f"/{PurePosixPath(name).parent}", "x"
            if other:
                before, _, rest = f"/{name}".partition(f"/{other}/")
            around, parent = before.lstrip("/"), PurePosixPath(rest).parent
        hint = "; see image_prefix, mask_prefix, image_suffix, mask_suffix"
        hint = "" if any((*self.prefixes, *self.suffixes)) else hint
        ending = suffix if suffix.lower().endswith(EXTENSIONS) else f"{suffix}.*"
        place = (PurePosixPath(around) / folder / parent).as_posix().lstrip("/")
        return f"{place}/{prefix}{stem}{ending}{hint}".removeprefix("./")

    def _hint_of_one(self, folder, prefix, walk):
        """What to type where images and masks lie in one folder, '' where they do not."""
        from .mask_like import describe_pairing
        text = describe_pairing(images_in(folder, prefix, walk), walk.inside.root)
        return f"; {text}" if text else ""


def _told_apart(files):
    """The names, with escapes where some of them look equal."""
    alike = len({visible(name) for name in files}) < len(files)
    return ", ".join(escaped(name) if alike else name for name in files)


def _fault(folder, name, inside):
    if not folder.is_dir():
        return f"{name}/ is missing"
    return f"{name} {LINK}" if inside.escapes(str(folder)) else ""
