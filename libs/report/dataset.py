"""What a run learned from, for its page: data.json and data.png of the run folder."""

import math

import numpy as np
from PIL import Image

from libs import report
from libs.data.summary import DATA, SHEET, describe
from libs.report.figures import png

SHEET_PIXELS = 1200  # longer side of a data.png that is too large to enter the page as it is
LEVELS_TITLE = {"8": "8 bits", "16": "16 bits", "32": "32 bits", "float": "floating point"}


def dataset(workdir, warnings):
    """What the page shows of the data, or None where data.json holds none (of earlier versions it holds
    weights alone).

    Returns:
        {'lines': sentences, 'facts': [(name, text)], 'classes': [(name, images, held out)], 'changes':
        [(images, held out)] of earlier sessions and of now where the data changed, 'sheet': data URI of
        data.png or ''}.
    """
    content = report.read_json(workdir / DATA, dict, warnings)
    if "fingerprint" not in content:
        return None
    try:
        earlier = [(each["images"], each["held_out"]) for each in content.get("earlier") or []]
        return {"lines": describe(content), "facts": _facts(content),
                "classes": [(name, row["images"], row["held_out"]) for name, row in content["classes"].items()],
                "changes": [*earlier, (content["images"], content["held_out"])] if earlier else [],
                "sheet": _sheet(workdir / SHEET, warnings)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        warnings.append(f"{DATA} could not be shown: {error!r}")
        return None


def _facts(content):
    """[(name, text)] of the numbers that the page lists; those that are not known are left out."""
    files, groups, masks, captions = content["files"], content["groups"], content["masks"], content["captions"]
    rows = [("images", f"{content['images']:,}"), ("held out", f"{content['held_out']:,}")]
    rows += [("splits", ", ".join(f"{name} {n:,}" for name, n in content["splits"].items()))] if content["splits"] else []
    rows += [("patients or other groups", "not known" if groups is None else
              f"{groups['images']:,}, and {groups['held_out']:,} held out")]
    if files:
        rows += [("sizes in pixels", f"{_size(files['smallest'])} to {_size(files['largest'])}"),
                 ("lost by the crop", f"{100 * files['area_lost']:.1f} % of the area, on average"),
                 ("enlarged", f"{files['enlarged']:,} of {files['images']:,}")]
        for bits, row in files["levels"].items():
            of = f" of 0..{row['range']}" if row.get("range") else ""
            rows.append((f"levels, {LEVELS_TITLE.get(bits, bits)}", f"{row['lowest']:g}..{row['highest']:g}{of}"))
        rows += [("grey files", f"{files['grey']:,} of {files['images']:,}")]
    rows += [("window", "{:g} to {:g}".format(*content["window"]))] if content["window"] else []
    rows += [("seen as", " x ".join(map(str, content["shape"])) + " (channels, height, width)")]
    if masks and masks["foreground"] is not None and math.isfinite(masks["foreground"]):
        rows += [("masks", f"{100 * masks['foreground']:.3g} % foreground on average; {masks['empty']:,} empty, "
                           f"{masks['full']:,} full of {masks['images']:,}"),
                 ("values of the masks", ", ".join(f"{name} {100 * share:.3g} %" for name, share in masks["values"].items()))]
    rows += [("captions", f"{captions['images']:,}, {captions['distinct']:,} of them distinct")] if captions else []
    return rows


def _size(size):
    return " x ".join(map(str, size))


def _sheet(path, warnings):
    """The data URI of data.png, reduced where it is too large; '' where it is absent or damaged, the latter
    with a warning."""
    if path.is_file() and path.stat().st_size > report.FIGURE_BYTES:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                return png(np.asarray(image.convert("RGB")), limit=SHEET_PIXELS)
        except (OSError, ValueError, SyntaxError) as error:
            warnings.append(f"{path.name} could not be shown: {error}")
            return ""
    return report.embedded(path, warnings)
