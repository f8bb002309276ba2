"""What the files of a data set hold: sizes, grey levels and masks, measured while `preflight` decodes them.

Grey levels that use a sliver of what their files could hold are the usual sign of a lost scale: 12-bit
values of X-ray, MR or CT in 16-bit files, or values between 0 and 1 saved as 8 bits. A training would see
images that are all but black.
"""

import numpy as np

RANGES = {8: 255, 16: 65535, 32: 65535}  # bits of a level: the level shown as white without a window
USED_SHARE = 0.25  # of a range; data that use less of it are taken for a mistake
DETECTOR_BITS = (8, 10, 12, 14)  # of a level, as scanners have them
SMALL_DATA = 4  # images; fewer may be dark by chance, such as those of a small held-out split


class Measurements:
    """Sums over the files of a data set, in one thread.

    Attributes:
        images: how many were measured.
        smallest, largest: (width, height) in pixels of the files with the smallest and largest area; None
            without files.
        share_kept: sum over images of the share of their area that the crop keeps.
        enlarged: images that are smaller than the resolution. grey: files of one channel. flat: images of
            one shade only.
        levels: {bits: {'images', 'lowest', 'highest'}}, bits 8, 16, 32 or 'float', before any window.
        blank: images that a window shows in one shade, though they hold several levels.
        mask_levels: pixels of each class (or grey level) in the masks, (256,), None without masks.
        foreground: sum over masks of the share of their foreground. empty, full: masks without, and of
            nothing but, foreground.
    """

    def __init__(self):
        self.images, self.smallest, self.largest, self.share_kept = 0, None, None, 0.0
        self.enlarged, self.grey, self.flat, self.blank = 0, 0, 0, 0
        self.levels, self.mask_levels = {}, None
        self.masks, self.foreground, self.empty, self.full = 0, 0.0, 0, 0

    def add(self, measured, window=()):
        """Take in one image.

        Args:
            measured: {'size', 'depth', 'low', 'high', 'grey', 'flat', 'share', 'enlarged'}, with a mask also
                'mask_levels' and 'foreground'; see `reading.open_image` and `files.ImageFiles.inspect`. {}
                of an image that was drawn or could not be read.
            window: (low, high) of the data set, () for none.
        """
        if not measured:
            return
        size, low, high = tuple(measured["size"]), measured["low"], measured["high"]
        self.smallest = min(self.smallest or size, size, key=_area)
        self.largest = max(self.largest or size, size, key=_area)
        self.images += 1
        self.share_kept += measured["share"]
        self.enlarged += measured["enlarged"]
        self.grey += measured["grey"]
        self.flat += measured["flat"]
        self.blank += bool(window) and not measured["flat"] and (high <= window[0] or low >= window[1])
        row = self.levels.setdefault(measured["depth"], {"images": 0, "lowest": low, "highest": high})
        row |= {"images": row["images"] + 1, "lowest": min(row["lowest"], low), "highest": max(row["highest"], high)}
        if "mask_levels" in measured:
            self.mask_levels = measured["mask_levels"] + (0 if self.mask_levels is None else self.mask_levels)
            self.masks += 1
            self.foreground += measured["foreground"]
            self.empty += measured["foreground"] == 0
            self.full += measured["foreground"] == 1

    def to_json(self):
        """All of it as JSON can hold it."""
        return {**vars(self), "levels": {str(bits): row for bits, row in self.levels.items()},
                "smallest": self.smallest and list(self.smallest), "largest": self.largest and list(self.largest),
                "mask_levels": None if self.mask_levels is None else self.mask_levels.tolist()}

    @classmethod
    def from_json(cls, content):
        """The opposite of `to_json`; TypeError or KeyError where `content` is something else."""
        made = cls()
        for name in vars(made):
            setattr(made, name, content[name])
        made.levels = {int(bits) if bits.isdigit() else bits: row for bits, row in made.levels.items()}
        made.mask_levels = None if made.mask_levels is None else np.array(made.mask_levels, np.int64)
        return made


def check_levels(measurements, window=()):
    """What is wrong with the grey levels of all images together.

    Args:
        measurements: `Measurements` of the whole data set.
        window: (low, high) of the data set, () for none. The full range of the files, (0, 255) or (0,
            65535), says that they are meant to be as dark as they are.
    Returns:
        (faults, warnings), sentences.
    """
    faults, warnings = [], []
    for bits, row in measurements.levels.items():
        if window:
            _check_window(measurements, bits, row, tuple(window), faults, warnings)
        elif bits in RANGES:
            _check_range(measurements, bits, row, faults, warnings)
    if measurements.blank and not faults:
        warnings.append(f"{measurements.blank} of {measurements.images} images are all black or all white "
                        f"under "
                        f"window={_pair(window)}, though they hold several grey levels; those of all images "
                        f"are "
                        f"{describe_levels(measurements)}. Look at data.png, and choose another "
                        f"--config.dataset.window")
    return faults, warnings


def describe_levels(measurements):
    """The grey levels as text: '0..4095 of 65535 (16 bits)'."""
    rows = [f"{row['lowest']:g}..{row['highest']:g}" + ("" if bits == 8 else f" of {RANGES[bits]}" if bits in RANGES else "")
            + ("" if bits == 8 and len(measurements.levels) == 1 else f" ({bits} bits)" if bits in RANGES else " (floating point)")
            + (f" in {row['images']} files" if len(measurements.levels) > 1 else "")
            for bits, row in sorted(measurements.levels.items(), key=lambda item: str(item[0]))]
    return ", ".join(rows)


def _check_range(measurements, bits, row, faults, warnings):
    """Whether files that are shown in their full range use enough of it."""
    levels, lowest, highest, full = measurements.levels, int(row["lowest"]), int(row["highest"]), RANGES[bits]
    n = f"{row['images']} image{'s' * (row['images'] > 1)}" + (f" of {bits} bits" if bits != 8 or len(levels) > 1 else "")
    of_one_shade = measurements.flat == measurements.images  # each file one level: no photographs
    if highest == 0:
        (faults if row["images"] >= SMALL_DATA else warnings).append(
            f"every pixel of {n} is 0, black: were these saved from 0..1? Values between 0 and 1 become 0 "
            f"where they are saved as "
            f'whole numbers. Save them again, multiplied by {full}{_take_as_they_are(levels, bits)}')
    elif highest < USED_SHARE * full:
        why = f"were these saved from 0..1? Save them again, multiplied by {full}, or set" if bits == 8 else "set"
        sentence = (f"the largest grey level of {n} is {highest} of {full}, so that they are nearly black: "
                    + _advise(levels, bits, (0, _detector_level(highest, bits)), why))
        by_chance = row["images"] < SMALL_DATA and (bits == 8 or highest > full / 16)
        small = by_chance or bits == 8 and of_one_shade
        (warnings if small else faults).append(sentence)
    elif highest - lowest < USED_SHARE * full and highest > lowest:
        sentence = (f"the grey levels of {n} are {lowest} to {highest} of 0..{full}, so that they have "
                    f"hardly any contrast: "
                    + _advise(levels, bits, (lowest, highest), "set"))
        (warnings if bits == 8 or of_one_shade else faults).append(sentence)


def _advise(levels, bits, window, why):
    """What to set, or what to do where one window does not suit all files."""
    low, high = window
    unsuited = [f"{row['images']} of {other} bits reach {row['highest']:g}" for other, row in levels.items() if other != bits
                and not (low <= row["lowest"] and high - low >= row["highest"] - low > USED_SHARE * (high - low))]
    if unsuited:
        return (f"a window that suits them does not suit the other files ({', '.join(unsuited)}). Save all "
                f"images with the same "
                f"number of bits{_take_as_they_are(levels, bits)}")
    return f"{why} --config.dataset.window={_pair(window)}, which shows them from black to white{_take_as_they_are(levels, bits)}"


def _take_as_they_are(levels, bits):
    """'; or ...': the option that says that images are meant to be so dark, where it is the range of all
    files."""
    if any(RANGES.get(other) != RANGES[bits] for other in levels):
        return ""
    return f'; --config.dataset.window="(0,{RANGES[bits]})" takes them as they are'


def _check_window(measurements, bits, row, window, faults, warnings):
    """Whether a window meets the levels of the files."""
    (low, high), lowest, highest = window, row["lowest"], row["highest"]
    n = f"all {row['images']} images" + (f" of {bits} bits" if bits in RANGES and len(measurements.levels) > 1 else "")
    if bits in RANGES and window == (0, RANGES[bits]):
        return  # the full range, given by hand
    if highest <= low or lowest >= high:
        shade = "black" if highest <= low else "white"
        faults.append(f"window={_pair(window)} shows {n} {shade}: their grey levels are {lowest:g} to "
                      f"{highest:g}. Choose a window "
                      f"within them, such as "
                      f"--config.dataset.window={_pair((lowest, highest if highest > lowest else lowest + 1))}")
    elif min(highest, high) - max(lowest, low) < USED_SHARE * (high - low) and highest > lowest:
        warnings.append(f"{n} use a small part of window={_pair(window)}: their grey levels are {lowest:g} "
                        f"to {highest:g}. If that "
                        f"is not meant, set --config.dataset.window={_pair((lowest, highest))}")


def _detector_level(highest, bits):
    """The largest level of the detector that gave `highest`: 4095 for 3900; `highest` itself where no usual
    one fits."""
    if bits == 8:
        return highest
    return next((2 ** k - 1 for k in DETECTOR_BITS if 2 ** (k - 1) <= highest < 2 ** k), highest)


def _pair(window):
    """A window as it is typed: '"(0,4095)"'."""
    return '"({:g},{:g})"'.format(*window) if max(map(abs, window)) < 1e5 else '"({},{})"'.format(*window)


def _area(size):
    return size[0] * size[1]
