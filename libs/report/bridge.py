"""The page of a dual bridge: each image beside its latent, its result and what changed, and what a classifier thinks of both.

Made from the output folder of sample_dual_bridge.py alone: bridge.json and shown.npz. Self-contained as the run report is.
"""

import json
import math
from pathlib import Path

import jinja2
import numpy as np

from libs import files, report
from libs.engine.checkpoint import write_text
from libs.report.figures import png

MOST_AMPLIFIED = 16
NUMBERS = ("mean", "std", "correlation", "target", "entropy", "margin", "change", "unguided")  # last words of such columns
BY_CHANCE = 4.0  # standard errors within which white noise lies


def write_bridge(folder, *, title=""):
    """Write folder/index.html atomically and return its Path; ValueError where the folder holds no bridge.json."""
    folder = Path(folder)
    if not (folder / "bridge.json").is_file():
        raise ValueError(f"{folder} holds no bridge.json: give the output folder of sample_dual_bridge.py")
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                   trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    templates.filters.update(number=report.number)
    page = templates.get_template("bridge.html.j2").render(contents(folder), title=title or folder.resolve().name)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def contents(folder):
    """What the template shows, as a dict."""
    result, arrays = files.read_json(folder / "bridge.json"), files.read_npz(folder / "shown.npz")
    scores = {name: report.score(entry) for name, entry in result["scores"].items()}
    k = amplification(arrays)
    return {"n": result["n"], "settings": result["settings"], "scores": scores, "latent": result["latent"],
            "latent_remark": remark(**result["latent"], over=result["n"]), "verdict": verdict(result["scores"].get("entropy_rise")),
            "maps": [{**each, "scores": {name: report.score(entry) for name, entry in each["scores"].items()}}
                     for each in result["maps"]],
            "most": math.log(len(result["classes"])) if result["classes"] else None, "classes": result["classes"],
            "amplified": k, "shown": [card(i, row, arrays, k, result["latent"]["size"]) for i, row in enumerate(result["shown"])]}


def card(i, row, arrays, k, size):
    """One shown image: its row with numbers as numbers, its pictures, and the bars of the classifier's belief."""
    numbers = {name: float(value) for name, value in row.items() if name.split("_")[-1] in NUMBERS and value != ""}
    beliefs = json.loads(row.get("beliefs") or "{}")
    pictures = {name: png(arrays[name][i]) for name in ("source", "latent", "unguided", "result")
                if name in arrays and arrays.get(f"has_{name}", np.ones(len(arrays[name]), bool))[i]}
    return {**row, **numbers, "pictures": pictures, "difference": png(difference(arrays["source"][i], arrays["result"][i], k)),
            "side": arrays["source"].shape[2],
            "remark": remark(numbers["latent_mean"], numbers["latent_std"], numbers["latent_correlation"], size),
            "bars": [{"name": name, "before": before, "after": after} for name, (before, after) in beliefs.items()]}


def amplification(arrays):
    """The whole number by which differences are multiplied, so that the larger ones of this page are just visible in full."""
    if "source" not in arrays or not len(arrays["source"]):
        return 1
    largest = np.quantile(np.abs(arrays["result"].astype(float) - arrays["source"]), 0.995)
    return int(np.clip(128 / max(largest, 1.0), 1, MOST_AMPLIFIED))


def difference(source, result, k):
    """uint8 picture of result - source, times k: middle grey is unchanged."""
    return np.clip(128 + k * (result.astype(float) - source), 0, 255).round().astype(np.uint8)


def remark(mean, std, correlation, size, over=1):
    """How far a latent of `size` values is from white noise N(0, 1), in words.

    over: latents whose values are taken together.
    """
    values = size * over
    said = []
    if abs(mean) > max(BY_CHANCE / math.sqrt(values), 0.005):
        said.append(f"its mean is {'above' if mean > 0 else 'below'} 0 by {abs(mean):.2g}")
    if abs(std - 1) > max(BY_CHANCE / math.sqrt(2 * values), 0.005):
        said.append(f"it is {abs(std - 1):.1%} {'wider' if std > 1 else 'narrower'} than noise")
    if abs(correlation) > max(BY_CHANCE / math.sqrt(values), 0.005):
        said.append(f"neighbours correlate by {correlation:.2g}, so the picture shows in it")
    return "; ".join(said) if said else "not to be told from white noise by these numbers"


def verdict(rise):
    """What the comparison with unguided decoding comes to, as a sentence; None without one."""
    if rise is None:
        return None
    of = f"({rise['low']:.3g} to {rise['high']:.3g}, {rise['n']} images paired)"
    if rise["low"] > 0:
        return f"Guidance raised the classifier's entropy by {rise['value']:.3g} nats over unguided decoding {of}."
    if rise["high"] < 0:
        return f"Guidance lowered the classifier's entropy by {-rise['value']:.3g} nats against unguided decoding {of}."
    return f"These images show no difference in the classifier's entropy to unguided decoding: {rise['value']:.3g} nats {of}."
