"""Files among the images of a data set that are their masks: by their names, and by what is in them.

benign/1.png, benign/1_mask.png     a suffix or prefix, of at least half of the images
1.bmp, 1.png                        one name, two extensions
images/1.png, masks/1.png           folders called so
"""

import fnmatch
import glob
import os
import re
import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from .reading import EXTENSIONS, decode

MASK_WORDS = {
    "mask",
    "masks",
    "segmentation",
    "segmentations",
    "segm",
    "seg",
    "segs",
    "gt",
    "gts",
    "groundtruth",
    "groundtruths",
    "label",
    "labels",
    "annotation",
    "annotations",
    "annot",
    "annots",
    "roi",
    "rois",
    "contour",
    "contours",
    "superpixels",
}
# of folders: mean nothing else
PLAIN_MASK_WORDS = {"mask", "masks", "segmentation", "segmentations", "groundtruth", "groundtruths"}
IMAGE_WORDS = {
    "image",
    "images",
    "img",
    "imgs",
    "photo",
    "photos",
    "picture",
    "pictures",
    "original",
    "originals",
    "scan",
    "scans",
}
ANY_WORD = re.compile("|".join((*MASK_WORDS, "ground[ _-]?truth")), re.IGNORECASE)
NEGATIONS = {"no", "not", "non", "without"}
SAMPLED_PAIRS = 8  # decoded to see what is in them
FEW_LEVELS = 16  # different colours of a mask, at most
EXTREME = 32  # levels from black or white that count as either: masks that JPEG smoothed
LONGEST_SUFFIX = 24  # letters
LARGEST = 100_000  # files whose names are compared
KEEP = "--config.dataset.mask_like_files=keep"
NUMBER = re.compile(r"(.*?)[ _.-]?\(?(\d{1,3})\)?")


@dataclass(slots=True)
class Pairs:
    """Images with files that look like their masks.

    Attributes:
        pairs: [(image, mask)], names below the data folder.
        suffix: what a mask's name has behind its image's, '_mask' or, with equal names, the extension '.png';
            '' where it is another word than at the end.
        plain: whether a word says that they are masks.
        images: how many there are, those without a mask too.
    """

    pairs: list
    suffix: str
    plain: bool
    images: int


def find_pairs(files):
    """The `Pairs` among file names that cover most of the images, in the order of their share; names alone
    count here."""
    files = sorted(set(files))
    by_place = defaultdict(lambda: defaultdict(list))
    for name in files:
        path = PurePosixPath(name)
        by_place[str(path.parent)][path.stem].append(name)
    kinds = defaultdict(dict)  # (suffix, whether a word says so) -> {mask: image}
    for stems in by_place.values():
        lengths = sorted({len(stem) for stem in stems}, reverse=True)
        for stem, same in stems.items():
            for name in same:
                _by_extension(name, same, kinds)
                _by_suffix(name, stem, stems, lengths, kinds)
        if ANY_WORD.search("\n".join(stems)):
            _by_words(stems, kinds)
    ranked = []
    for (suffix, plain), partner in kinds.items():
        images = [name for name in files if name not in partner]
        covered = set(partner.values()) - set(partner)
        pairs = sorted((image, mask) for mask, image in partner.items() if image in covered)
        if pairs:
            ranked.append((len(covered) / len(images), Pairs(pairs, suffix, plain, len(images))))
    return [pairs for share, pairs in sorted(ranked, key=_rank) if share >= 0.5 or pairs.plain]


def _rank(each):
    share, pairs = each
    return -share, not pairs.plain, -len(pairs.suffix)


def common_suffix(images, masks):
    """What at least half of the stems `masks` have behind a stem of `images`, '' where there is no such
    thing."""
    count, stems = defaultdict(int), set(images)
    for stem in masks:
        for cut in range(max(1, len(stem) - LONGEST_SUFFIX), len(stem)):
            if stem[:cut] in stems and (suffix := _without_number(stem[cut:])):
                count[suffix] += 1
    best = max(count, key=lambda suffix: (count[suffix], -len(suffix)), default="")
    return best if best and 2 * count[best] >= len(masks) else ""


def looks_like_mask(path):
    """Whether an image file holds few colours, or hardly any but black and white; False where it cannot be
    read."""
    return _count_colours(path) <= FEW_LEVELS


def _count_colours(path):
    """How many colours an image file holds, 2 where nearly all of it is black or white; infinity where it
    cannot be read."""
    try:
        image = decode(path)
    except ValueError:
        return np.inf
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return len(np.unique(np.asarray(image)))
    colours = np.asarray(image.convert("RGBA")).reshape(-1, 4).astype(np.uint32)
    count = len(np.unique(colours @ (1 << np.arange(0, 32, 8, dtype=np.uint32))))
    grey = colours[:, :3]
    extreme = ((grey < EXTREME) | (grey > 255 - EXTREME)).all(1).mean() > 0.9
    return 2 if extreme and count > 2 else count


def are_masks(pairs, root):
    """Whether a sample of `Pairs` holds masks: half of them do where a word says so, else most, and their
    images are none.

    An image of one colour is no mask; a mask may be of one.
    """
    chosen = np.unique(np.linspace(0, len(pairs.pairs) - 1, SAMPLED_PAIRS).round().astype(int))
    masks = np.array([_count_colours(root / pairs.pairs[k][1]) for k in chosen])
    if pairs.plain:
        return (masks <= FEW_LEVELS).mean() >= 0.5
    images = np.array([_count_colours(root / pairs.pairs[k][0]) for k in chosen])
    return bool(
        (masks <= FEW_LEVELS).mean() >= 0.75
        and (masks > 1).any()
        and ((images > 1) & (images <= FEW_LEVELS)).mean() < 0.5
    )


def mask_folders(files, folders, root):
    """({folders of masks}, {folders of images}) on the way to `files`, as parts of their paths; empty where
    there are not both.

    A folder is of masks where its name says nothing else ('masks', 'GT' beside 'images'), or where it holds
    such files.
    folders: class folders, those without images too.
    """
    place = {}
    for name in files:
        for part in PurePosixPath(name).parts[:-1]:
            place.setdefault(part, []).append(name)
    parts = set(place) | set(folders)
    words = {part: _words(part) for part in parts}
    images = {part for part in parts if words[part] and words[part] <= IMAGE_WORDS}
    worn = any(words[part] & MASK_WORDS and words[part] & NEGATIONS for part in parts)  # faces without a mask
    masks = {
        part
        for part in parts
        if words[part] & MASK_WORDS
        and (
            words[part] <= PLAIN_MASK_WORDS and not worn
            or images
            and words[part] <= MASK_WORDS | IMAGE_WORDS | {"folder", "dir"}
            or _hold_masks(place.get(part, []), root)
        )
    }
    of_masks = [name for name in files if masks & set(PurePosixPath(name).parts[:-1])]
    if not masks or len(of_masks) == len(files):
        return set(), set()
    return masks, images


def ignore_pattern(pairs, files):
    """Glob patterns that fit the masks of `pairs` and no other of `files`, as a tuple; () where there are
    none so simple."""
    masks = {mask for _, mask in pairs.pairs}
    others = set(files) - masks
    suffix = glob.escape(pairs.suffix)
    if pairs.suffix.lower().endswith(EXTENSIONS):
        tries = [(f"*{suffix}",)]
    elif pairs.suffix:
        tries = [(f"*{suffix}.*",), (f"*{suffix}.*", f"*{suffix}[ _-][0-9]*.*"), (f"*{suffix}*",)]
    else:
        kinds = _affixes(pairs)
        words = {word for mask in masks for word in _words(PurePosixPath(mask).stem) & MASK_WORDS}
        tries = [(f"*{glob.escape(kinds['mask_suffix'])}.*",)] if "mask_suffix" in kinds else []
        tries += [(f"{glob.escape(kinds['mask_prefix'])}*",)] if "mask_prefix" in kinds else []
        tries += [tuple(f"*{word}*" for word in sorted(words))] if words else []

    def fits(name, patterns):
        base = PurePosixPath(name).name.lower()
        return any(fnmatch.fnmatchcase(base, pattern.lower()) for pattern in patterns)

    for patterns in tries:
        if all(fits(mask, patterns) for mask in masks) and not any(fits(name, patterns) for name in others):
            return patterns
    return ()


def _hold_masks(files, root):
    chosen = np.unique(np.linspace(0, len(files) - 1, SAMPLED_PAIRS).round().astype(int)) if files else []
    return bool(len(chosen)) and np.mean([looks_like_mask(root / files[k]) for k in chosen]) >= 0.75


def _words(name):
    """{'left', 'mask'} of 'leftMask_200x150': words without numbers, small."""
    name = re.sub(r"\d+x\d+", " ", _one_word(name))
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", name)}


def _one_word(name):
    return re.sub(r"(?i)ground[ _-]?truth", "groundtruth", name)


def _without_number(suffix):
    """'_mask_1' -> '_mask'; '' where nothing but a number remains."""
    number = NUMBER.fullmatch(suffix)
    if number:
        suffix = number[1]
    return suffix if re.search(r"[^\d _.()-]", suffix) else ""


def _by_extension(name, same, kinds):
    for other in same:
        if other != name:
            kinds[PurePosixPath(name).suffix.lower(), False][name] = other


def _by_suffix(name, stem, stems, lengths, kinds):
    for cut in lengths:
        if not len(stem) - LONGEST_SUFFIX <= cut < len(stem):
            continue
        if stem[:cut] in stems and (suffix := _without_number(stem[cut:])):
            kinds[suffix, _is_plain(suffix)][name] = stems[stem[:cut]][0]
            return


def _by_words(stems, kinds):
    """'seg_001' with '001' or 'img_001', '001_gt_2' with '001_image'."""
    bases = defaultdict(list)
    for stem, same in stems.items():
        pieces = _pieces(stem)
        if not any(piece in MASK_WORDS for piece in pieces):
            bases[tuple(piece for piece in pieces if piece not in IMAGE_WORDS)].append(same[0])
    for stem, same in stems.items():
        pieces = _pieces(stem)
        at = next((k for k, piece in enumerate(pieces) if piece in MASK_WORDS), None)
        if at is None:
            continue
        rest = [piece for piece in pieces if piece not in MASK_WORDS | IMAGE_WORDS]
        images = bases.get(tuple(rest))
        if not images and at and rest and rest[-1].isdigit():  # 001_gt_2: the number of a further mask
            images = bases.get(tuple(rest[:-1]))
        if images and not any(stem.startswith(PurePosixPath(image).stem) for image in images):
            for name in same:
                kinds["", True][name] = images[0]


def _pieces(stem):
    return [piece.lower() for piece in re.split(r"[\W_]+", _one_word(stem)) if piece]


def _is_plain(suffix):
    return suffix.startswith("@") or bool(_words(suffix) & MASK_WORDS)


def check_masks(files, root, folders, *, path, table):
    """What looks like masks among the images, in a sentence with what to type; '' where nothing does.

    Args:
        files: names of the images, of one split.
        root: the folder that they are relative to.
        folders: names of the class folders.
        path: of the data, as the user gave it; table: whether it is a table.
    Returns:
        (fault, warning): the fault for at least half of the images, the warning for fewer.
    """
    files = sorted(set(files))[:LARGEST]
    masks, images = mask_folders(files, folders, root)
    if masks:
        return _describe_folders(files, masks, images, set(folders), path, table, root), ""
    for pairs in find_pairs(files):
        if are_masks(pairs, root):
            covered = len({image for image, _ in pairs.pairs})
            text = _describe_pairs(pairs, files, root)
            return (text, "") if 2 * covered >= pairs.images else ("", text)
    return "", ""


def masks_alone(files, root):
    """`files` without the images that have a mask among them."""
    for pairs in find_pairs(files[:LARGEST]):
        if are_masks(pairs, root):
            images = {image for image, _ in pairs.pairs}
            return [name for name in files if name not in images]
    return files


def masks_among(files, images, root):
    """Those of `files` whose names and contents are of masks of `images`."""
    others = set(files)
    for pairs in find_pairs([*files[:LARGEST], *images[:LARGEST]]):
        if pairs.plain and are_masks(pairs, root):
            return [mask for _, mask in pairs.pairs if mask in others]
    stems = {PurePosixPath(name).stem for name in images}
    twins = [name for name in files if PurePosixPath(name).stem in stems]
    return twins if _hold_masks(twins, root) and not _hold_masks(images, root) else []


def describe_pairing(files, root):
    """The options of 'image_mask' for images and masks in one folder, in a sentence; '' where none would pair
    them."""
    for pairs in find_pairs(sorted(set(files))[:LARGEST]):
        settings = _pairing(pairs)
        if settings and are_masks(pairs, Path(root)):
            image, mask = pairs.pairs[0]
            return (
                f"images and masks in one folder, such as {image} and {mask}, take "
                f"--config.dataset.images_folder= --config.dataset.masks_folder= {settings}"
            )
    return ""


def _describe_pairs(pairs, files, root):
    shown = "; ".join(f"{image} and {mask}" for image, mask in pairs.pairs[:3])
    advice, settings = [], _pairing(pairs)
    patterns = ignore_pattern(pairs, files)
    if patterns:
        advice.append(f'to leave them out: --config.dataset.ignore_files="{patterns!r}"')
    if settings:
        advice.append(
            "to pair them with their images: --config.dataset.name=image_mask "
            "--config.dataset.images_folder= --config.dataset.masks_folder= "
            f"{settings}{_values_option([mask for _, mask in pairs.pairs], root)}"
        )
    advice = [
        *(advice or ["move them into a folder outside of the data"]),
        f"to take them for images: {KEEP}",
    ]
    return (
        f"{len(pairs.pairs)} files look like masks of other images, not like images: "
        f"{shown}{' ...' * (len(pairs.pairs) > 3)}. Do one of these:{_lines(advice)}"
    )


def _pairing(pairs):
    """The options of 'image_mask' that pair these files, '' where there are none so simple."""
    if pairs.suffix.lower().endswith(EXTENSIONS):
        extensions = {PurePosixPath(image).suffix for image, _ in pairs.pairs}
        mine = {PurePosixPath(mask).suffix for _, mask in pairs.pairs}
        if len(mine) > 1 or extensions & mine:
            return ""
        return _option("mask_suffix", next(iter(mine)))
    if pairs.suffix:
        return _option("mask_suffix", pairs.suffix)
    return " ".join(_option(kind, text) for kind, text in _affixes(pairs).items() if text)


def _affixes(pairs):
    """{'image_suffix': ..., 'mask_suffix': ...} (or prefixes) that all pairs differ by; {} where there are
    none."""
    stems = [(PurePosixPath(image).stem, PurePosixPath(mask).stem) for image, mask in pairs.pairs]
    ends = {_apart(image, mask) for image, mask in stems}
    if len(ends) == 1:
        return dict(zip(("image_suffix", "mask_suffix"), ends.pop()))
    begins = {tuple(text[::-1] for text in _apart(image[::-1], mask[::-1])) for image, mask in stems}
    return dict(zip(("image_prefix", "mask_prefix"), begins.pop())) if len(begins) == 1 else {}


def _values_option(masks, root):
    """The option that declares the values of these mask files, with a blank before it; '' where none is
    needed."""
    chosen, met, grey = masks[:: max(1, len(masks) // SAMPLED_PAIRS)], Counter(), True
    for name in chosen:
        try:
            image = decode(Path(root) / name)
        except ValueError:
            return ""
        if image.mode not in ("1", "L", "P", "RGB"):
            return ""
        colours, counts = np.unique(
            np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True
        )
        grey = grey and bool((colours == colours[:, :1]).all())
        if len(colours) > FEW_LEVELS:
            return ""
        for colour, count in zip(colours.tolist(), counts.tolist()):
            met[tuple(colour)] += count
    background = (0, 0, 0) if (0, 0, 0) in met else met.most_common(1)[0][0]
    values = [background, *sorted(set(met) - {background})]
    if len(values) < 2 or len(values) > FEW_LEVELS or grey and max(values)[0] > 127:
        return ""
    return f' --config.dataset.mask_values="{tuple(value[0] if grey else value for value in values)!r}"'


def _apart(first, second):
    """What two texts have behind the beginning that they share, in whole words: ('_image', '_mask') of
    '1_image', '1_mask'."""
    shared = len(re.sub(r"[^\W\d_]*$", "", os.path.commonprefix([first, second])).rstrip(" _.-"))
    return first[shared:], second[shared:]


def _lines(advice):
    return "".join(f"\n  {each}" for each in advice)


def _option(name, value):
    return shlex.quote(f"--config.dataset.{name}={value}")


def _describe_folders(files, masks, images, classes, path, table, root):
    mask, image = sorted(masks)[0], sorted(images)[0] if images else ""
    others = sorted(classes - masks)
    count = sum(bool(masks & set(PurePosixPath(name).parts[:-1])) for name in files)
    first = min(
        (
            PurePosixPath(name).parts.index(part)
            for name in files
            for part in masks
            if part in PurePosixPath(name).parts[:-1]
        ),
        default=0,
    )
    # images beside the folder of masks
    loose = any(len(PurePosixPath(name).parts) == first + 1 for name in files)
    if table or first > 1 or loose or not masks & classes:
        patterns = tuple(f"{before}{glob.escape(part)}/*" for part in sorted(masks) for before in ("", "*/"))
        alone = f'--config.dataset.ignore_files="{patterns!r}"'
    elif len(others) == 1 and first == 0:
        alone = shlex.quote(f"--config.dataset.path={PurePosixPath(path) / others[0]}")
    else:
        alone = f'--config.dataset.drop_classes="{tuple(sorted(masks & classes))!r}"'
    settings = ["--config.dataset.name=image_mask"]
    if not image and not (masks & classes and len(others) == 1):
        settings.append("--config.dataset.images_folder=")
    elif (image or others[0]) != "images":
        settings.append(_option("images_folder", image or others[0]))
    settings += [_option("masks_folder", mask)] if mask != "masks" else []
    of_mask = [name for name in files if mask in PurePosixPath(name).parts[:-1]]
    stems = [
        [PurePosixPath(name).stem for name in files if wanted(set(PurePosixPath(name).parts[:-1]))]
        for wanted in (lambda parts: not masks & parts, lambda parts: mask in parts)
    ]
    suffix = "" if set(stems[0]) & set(stems[1]) else common_suffix(*stems)
    settings += [_option("mask_suffix", suffix)] if suffix else []
    beside = (
        f" beside {', '.join(map(repr, sorted(images) or others or ['images']))}" if images or others else ""
    )
    return (
        f"{', '.join(map(repr, sorted(masks)))}{beside} look{'s' * (len(masks) == 1)} like a folder of "
        f"masks, not of images: {count} of {len(files)} files. Do one of these:"
        + _lines(
            [
                f"to leave them out: {alone}",
                f"to pair them with their images: {' '.join(settings)}{_values_option(of_mask, root)}",
                f"to take them for images: {KEEP}"
                f"{' --config.dataset.label_column=' * (loose and first == 0)}",
            ]
        )
    )
