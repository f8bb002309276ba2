"""What a training learns from, in numbers and words: logged before the first step, and kept in the run
folder.

data.json holds the named fields of `summarise` (counts only, no name of a file or a patient), data.png the
images of `sheet.write_sheet`.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch

from .check import read_note
from .measurements import RANGES, Measurements, describe_levels
from .sheet import write_sheet

log = logging.getLogger(__name__)
DATA, SHEET = "data.json", "data.png"  # in the run folder
CLASSES_LISTED = 12  # in one line of the log


def record_summary(run, stream, options, *, images=None, held_out=None, codec=None):
    """Log what the training learns from, let the run keep it in data.json, and write data.png. Main process
    only.

    A run that goes on with other data than before says so in one line.

    Args:
        run: engine.Run, of which is_main, resumes, seed and folder are used.
        stream: `loader.Stream` of what is trained on; its `facts` become data.json.
        options: config.dataset.
        images: the real images, where they are at hand; those of the stream where it has images.
        held_out: data set of the validation split, or None.
        codec: `codecs.Codec` of the features, which shows them in data.png where the images are not at hand.
    """
    if not run.is_main:
        return
    examples = stream.dataset
    images = examples if images is None and _store(examples) is None else images
    before = _read(run.folder / DATA)
    stream.summary = summarise(examples, options, images=images, held_out=held_out)
    changed = bool(before.get("fingerprint")) and _identity(before) != _identity(stream.summary)
    earlier = list(before.get("earlier") or [])
    if changed:
        if run.resumes:
            log.warning("%s", describe_change(before, stream.summary))
        earlier += [{key: before.get(key) for key in ("images", "held_out", "fingerprint")}]
    if earlier and run.resumes:
        stream.summary["earlier"] = earlier
    for line in describe(stream.summary):
        log.info("data: %s", line)
    if changed or not (run.folder / SHEET).is_file():
        _write_sheet(run, examples if images is None else images, codec)


def summarise(examples, options, *, images=None, held_out=None):
    """What is trained on, as JSON can hold it.

    Args:
        examples: data set that is trained on, images or features; options: config.dataset.
        images: the real images behind it, or None; held_out: of the validation split, or None.
    Returns:
        images, held_out: counts. fingerprint, held_out_fingerprint: of the data sets, '' without held-out data.
        splits: {name: images} of all splits of the data.
        from: 'images' or 'features'.
        classes: {name: {'images', 'held_out'}}.
        groups: {'images', 'held_out'}, how many patients (or lesions) they are of; None where none are known.
        captions: {'images', 'distinct'}; None without.
        shape: [C, H, W] in pixels. crop, window: of config.dataset.
        files: {'images', 'smallest', 'largest', 'area_lost', 'enlarged', 'grey', 'flat', 'levels': {bits:
            {'images', 'lowest', 'highest', 'range'}}} of what pre-flight measured; None where nothing was.
        masks: {'images', 'names', 'values', 'foreground', 'empty', 'full'}; None without.
    """
    real = examples if images is None else images
    measured = _measurements(examples, images)
    groups = [_groups(each) for each in (real, held_out)]
    return {
        "images": len(examples), "held_out": 0 if held_out is None else len(held_out), "splits": dict(real.split_sizes),
        "fingerprint": examples.fingerprint, "held_out_fingerprint": "" if held_out is None else held_out.fingerprint,
        "from": "images" if _store(examples) is None else "features",
        "classes": _classes(examples, held_out),
        "groups": None if groups[0] is None else {"images": groups[0], "held_out": groups[1] or 0},
        "captions": _captions(examples), "shape": _shape(examples, images),
        "crop": str(getattr(real, "crop", options.get("crop", ""))), "window": list(real.window), "files": _files(measured),
        "masks": _masks(examples if images is None else images, measured)}


def describe(summary):
    """The `summarise`d data in a few lines."""
    counts = f"{_describe_counts(summary)}, {_describe_classes(summary)}"
    parts = [counts, *_describe_files(summary), _describe_groups(summary)]
    held_out = {name: row["held_out"] for name, row in summary["classes"].items()}
    lines = ["; ".join(part for part in parts if part)]
    if summary["held_out"] and len(held_out) > 1:
        lines.append(f"held out: {_listed(held_out)}")
    lines += [text for text in (_describe_masks(summary), _describe_captions(summary)) if text]
    return lines


def describe_change(before, now):
    """That the data are others than they were, as one sentence; both from data.json."""
    what = f"{before['images']} images then, {now['images']} now"
    if before.get("held_out") != now["held_out"]:
        what += f"; held out {before.get('held_out')} then, {now['held_out']} now"
    if _counts(before) == _counts(now):
        what += " (as many, but other files, files of another size or time, or other options of config.dataset)"
    return (f"the data have changed since this run was last started: {what}. The training goes on with "
            f"those of now. Its losses "
            "before and after are of different images; scores against the images of now are not comparable "
            "with earlier ones")


def _describe_counts(summary):
    n, held_out, splits = summary["images"], summary["held_out"], summary["splits"]
    whole = max(sum(splits.values()), n + held_out)
    others = [f"{held_out} held out"] if held_out else []
    rest = whole - n - held_out
    others += [f"{rest} in other splits"] if rest else []
    of = f" (of {whole}, {', '.join(others)})" if others else " (none held out)"
    features = ", as features" if summary["from"] == "features" else ""
    return f"{n} images{of}{features}"


def _describe_classes(summary):
    classes = summary["classes"]
    if not classes:
        return "no classes"
    return f"{len(classes)} class{'es' * (len(classes) > 1)}: " + _listed({name: row["images"] for name, row in classes.items()})


def _describe_files(summary):
    files, (channels, *side) = summary["files"], summary["shape"]
    seen = f"{' x '.join(map(str, side))} pixels, {channels} channel{'s' * (channels > 1)}"
    if files is None:
        return [f"seen at {seen}" if side and side[0] else "", "" if summary["from"] == "images" else
                "sizes and grey levels of the files are not known"]
    smallest, largest = ("x".join(map(str, files[key])) for key in ("smallest", "largest"))
    sizes = smallest if smallest == largest else f"{smallest} to {largest}"
    lost = f"{100 * files['area_lost']:.0f} % of the area lost on average"
    if summary["crop"] == "pad":
        sizes += ", kept whole and padded to a square"
    elif files["area_lost"] < 0.0005:
        sizes += ", nothing cut off"
    else:
        how = "cut to squares of random size and place" if summary["crop"] == "random" else "cut to their central square"
        sizes += f", {how} ({lost if summary['crop'] != 'random' else 'at least ' + lost}; crop=pad keeps all)"
    sizes += f", {files['enlarged']} of {files['images']} enlarged" if files["enlarged"] else ""
    window = "" if not summary["window"] else ", shown through window=({:g},{:g})".format(*summary["window"])
    flat = f", {files['flat']} of one shade only" if files["flat"] else ""
    grey = " (all files grey)" if channels == 3 and files["grey"] == files["images"] else ""
    return [sizes, f"grey levels {_describe_levels(files)}{window}{flat}", f"seen at {seen}{grey}"]


def _describe_levels(files):
    measured = Measurements()
    measured.levels = {int(bits) if bits.isdigit() else bits: row for bits, row in files["levels"].items()}
    return describe_levels(measured)


def _describe_groups(summary):
    if summary["groups"] is None:
        return "no patients known"
    held_out = f" ({summary['groups']['held_out']} held out)" if summary["held_out"] else ""
    return f"{summary['groups']['images']} patients or other groups{held_out}"


def _describe_masks(summary):
    masks = summary["masks"]
    if masks is None:
        return ""
    values = ", ".join(f"{name} {100 * share:.3g} %" for name, share in masks["values"].items())
    if masks["foreground"] is None:
        return f"masks of {', '.join(masks['names'])}"
    blank = [f"{masks[key]} {key}" for key in ("empty", "full") if masks[key]]
    return (f"masks: {100 * masks['foreground']:.3g} % foreground on average" + (f" ({values})" if values else "")
            + (f"; {' and '.join(blank)} of {masks['images']}" if blank else ""))


def _describe_captions(summary):
    captions = summary["captions"]
    return "" if captions is None else f"captions: {captions['images']} images have one, {captions['distinct']} distinct texts"


def _listed(counts):
    """'no 88, yes 140 and 3 more' of {name: number}."""
    names = list(counts)[:CLASSES_LISTED]
    more = f" and {len(counts) - len(names)} more" if len(counts) > len(names) else ""
    return ", ".join(f"{name} {counts[name]}" for name in names) + more


def _classes(examples, held_out):
    if examples.labels is None:
        return {}
    names = [str(name) for name in examples.classes]
    counts = [[0] * len(names) if each is None or each.labels is None else
              torch.bincount(torch.as_tensor(each.labels), minlength=len(names)).tolist() for each in (examples, held_out)]
    return {name: {"images": n, "held_out": unseen} for name, n, unseen in zip(names, *counts)}


def _groups(dataset):
    """How many groups the images belong to; None where nothing is known of any."""
    groups = None if dataset is None else dataset.groups
    return None if groups is None else len({groups[i] for i in range(len(dataset))})


def _captions(examples):
    captions = getattr(examples, "captions", None)
    if captions is None:
        return None
    texts = [[text] if isinstance(text, str) else list(text) for text in captions]
    return {"images": sum(any(text.strip() for text in each) for each in texts),
            "distinct": len({text for each in texts for text in each if text.strip()})}


def _shape(examples, images):
    """[C, H, W] of the images in pixels; of features without images what their store says of them."""
    store = _store(examples)
    if images is not None or store is None:
        return list((examples if images is None else images).shape)
    of = store.manifest.get("about", {}).get("dataset", {})
    side = of.get("resolution", 0)
    return [of.get("channels", 3), side, side]


def _measurements(examples, images):
    """`Measurements` of the files: by this start, by an earlier one, or by the script that made the
    features; or None."""
    real, store = examples if images is None else images, _store(examples)
    measured = real.measurements or getattr(getattr(real, "dataset", None), "measurements", None)
    if measured is None and store is not None:
        note = read_note(Path(store.path).with_name(f"{Path(store.path).name}_preflight.json"))
        made_of = store.manifest.get("data", {}).get("fingerprint")
        measured = note["measurements"] if note and note["good"] == made_of else None
    return measured if measured is not None and measured.images else None


def _store(dataset):
    """The feature store below a data set, `store.Features`; None where it has images."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset if hasattr(dataset, "manifest") else None


def _files(measured):
    if measured is None:
        return None
    return {"images": measured.images, "smallest": list(measured.smallest), "largest": list(measured.largest),
            "area_lost": round(1 - measured.share_kept / measured.images, 4), "enlarged": int(measured.enlarged),
            "grey": int(measured.grey), "flat": int(measured.flat),
            "levels": {str(bits): row | {"range": RANGES.get(bits)} for bits, row in measured.levels.items()}}


def _masks(dataset, measured):
    code = dataset.masks_as
    if code is None:
        return None
    found = {"images": len(dataset), "names": [str(name) for name in code.names], "values": {}, "foreground": None, "empty": None,
             "full": None}
    if measured is not None and measured.masks:
        shares = measured.mask_levels / max(1, measured.mask_levels.sum())
        names = found["names"] if code.values else {level: f"level {level}" for level in np.flatnonzero(shares).tolist()}
        numbers = range(len(names)) if code.values else list(names)[:CLASSES_LISTED]
        found |= {"images": measured.masks, "foreground": round(measured.foreground / measured.masks, 5),
                  "values": {names[k]: round(float(shares[k]), 5) for k in numbers},
                  "empty": int(measured.empty), "full": int(measured.full)}
    return found


def _write_sheet(run, dataset, codec):
    """data.png, or one line that says why there is none; random numbers of the training stay as they are."""
    def decode(batch):
        return codec.decode(codec.sample(batch["mean"].to(run.device), None))

    if _store(dataset) is not None and codec is None:
        log.info("%s: not written, as neither images nor a codec of the features are at hand", run.folder / SHEET)
        return
    try:
        with torch.no_grad(), torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
            write_sheet(run.folder / SHEET, dataset, seed=run.seed, decode=None if _store(dataset) is None else decode)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        log.warning("%s: not written (%s)", run.folder / SHEET, error)


def _read(path):
    """The content of data.json; {} where there is none, or a damaged one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _identity(summary):
    return summary.get("fingerprint"), summary.get("held_out_fingerprint")


def _counts(summary):
    return summary.get("images"), summary.get("held_out")
