"""Which evaluation of a run is its main one, and what sets the others apart from it.

The main evaluation is an ordinary one (prompts as the run's config draws them, its sampler, no filter, the
averaged weights, its own split as the reference) with the most images, and of equal ones the newest. A
special one, such as that of combinations that no training text has, never takes its place, however new it is.
"""

import math
import re

PROMPTS = {"unseen": "combinations of attributes that no training text has", "bank": "texts of the training"}
TOLERANCE = 1e-6  # of a guidance scale


def specialities(scores, config):
    """What sets an evaluation apart from an ordinary one of its run, as short texts; [] of an ordinary one.

    Args:
        scores: content of scores.json. config: content of the run's config.json, as dicts.
    """
    sample, dataset = _section(config, "sample"), _section(config, "dataset")
    texts = []
    prompts = scores.get("prompts")
    if prompts and prompts not in ("bank", sample.get("prompts")):
        texts.append(f"prompts: {PROMPTS.get(prompts, f'texts of split {prompts}')}")
    if isinstance(scores.get("filter"), dict):
        texts.append("images chosen by a filter")
    texts += _sampler(scores, sample)
    split = scores.get("reference_split")
    if split and dataset.get("split") and split != dataset["split"]:
        texts.append(f"compared with split {split!r}")
    if scores.get("weights") == "raw" or str(scores.get("nnet") or "").endswith("nnet.safetensors"):
        texts.append("weights without averaging")
    return texts


def rank(scores, special, made):
    """Sort key of an evaluation: the largest is the main one.

    Args:
        scores: content of scores.json. special: its `specialities`. made: when it was written, in seconds.
    """
    n = scores.get("n")
    return bool(scores.get("scores")), -len(special), n if type(n) is int else 0, made


def _sampler(scores, sample):
    """What of the sampling differs from the run's config."""
    text, measured = str(scores.get("sampler") or ""), scores.get("sampling")
    measured = measured if isinstance(measured, dict) else {}
    words = re.match(r"([\w+]+)(?:, (\d+) steps)?", text)
    algorithm = measured.get("algorithm") or (words and words[2] and words[1])
    steps = measured.get("steps") or (words and words[2] and int(words[2]))
    texts = []
    if algorithm and sample.get("algorithm") and algorithm != sample["algorithm"]:
        texts.append(f"sampler {algorithm}")
    if steps and sample.get("sample_steps") and steps != sample["sample_steps"]:
        texts.append(f"{steps} sampling steps")
    usual, guidance = _guidance(sample), measured.get("guidance")
    if guidance is None and text:
        named = re.search(r"guidance (\d+(?:\.\d+)?)", text)
        guidance = float(named[1]) if named else 1.0
    if usual is not None and guidance is not None and not math.isclose(usual, guidance, abs_tol=TOLERANCE):
        texts.append(f"guidance {guidance:g}")
    if " for t in [" in text and list(sample.get("guidance_interval") or (0.0, 1.0)) == [0.0, 1.0]:
        texts.append("guidance within an interval")
    if " of the first " in text and sample.get("guided_channels", "all") == "all":
        texts.append("guidance of some channels")
    gradient = sample.get("gradient") if isinstance(sample.get("gradient"), dict) else {}
    if "gradient of " in text and not gradient.get("scale"):
        texts.append("guided by the gradient of a classifier")
    return texts


def _guidance(sample):
    """The scale s of uncond + s (cond - uncond) in the run's config; published configs write s - 1 as
    `scale`. None without."""
    value = sample.get("scale", sample.get("guidance"))
    if type(value) not in (int, float):
        return None
    return 1.0 + value if "scale" in sample else float(value)


def _section(config, name):
    found = config.get(name)
    return found if isinstance(found, dict) else {}
