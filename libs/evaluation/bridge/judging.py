"""What came of a bridge: in numbers, beside unguided results, to an independent classifier; and what its page is made of."""

import math
from pathlib import Path

import numpy as np
import torch

from libs import files, metrics
from libs.engine.checkpoint import write_text
from libs.evaluation.bridge.carrying import entropy
from libs.evaluation.bridge.files import BELIEFS, COLUMNS, LATENTS, load
from libs.evaluation.generation import nhwc, save_npz
from libs.pipeline import to_uint8


def check_judges(jobs, beside, recogniser):
    """Raise ValueError where `judge` could say nothing of these jobs, before they are made."""
    if beside is not None and not any((job.file, job.source, job.target) in beside for job in jobs):
        raise ValueError("--compare_path has none of these images between these classes; the first is "
                         f"{jobs[0].file} from {jobs[0].source!r} to {jobs[0].target!r}")
    if recogniser is not None:
        unknown = sorted({job.target for job in jobs} - set(recogniser.classes or ()))
        if unknown:
            raise ValueError(f"--recogniser tells {recogniser.classes} apart, not {unknown}")


def judge(run, bridge, dataset, rows, folder, *, beside=None, recogniser=None, batch_size=64):
    """What an unguided run and an independent classifier say of each result: {name: float64 Tensor (n,)}, NaN where unknown.

    Args:
        rows: of `read_rows`. beside: from `unguided`, or None. recogniser: metrics.Extractor with the target classes, or None.
    Returns:
        unguided_entropy, unguided_change and from_unguided (mean absolute differences to the source and to the result),
        recognised_source, _unguided, _result (1 where the recogniser says the target class), of what was asked for.
    """
    names = (["unguided_entropy"] * (bridge.classifier is not None) + ["unguided_change", "from_unguided"]) * (beside is not None)
    if recogniser is not None:
        names += ["recognised_source", "recognised_result"] + ["recognised_unguided"] * (beside is not None)
    if not names:
        return {}
    index, folder = {dataset.file_name(i): i for i in range(len(dataset))}, Path(folder)
    batches = [range(len(rows))[k:k + batch_size] for k in range(0, len(rows), batch_size)][run.rank::run.world]
    table = [torch.empty(0, len(names), dtype=torch.float64)]
    for batch in batches:
        part = [rows[k] for k in batch]
        source = to_uint8(torch.stack([dataset[index[row["source_file"]]]["image"] for row in part]))
        result = torch.stack([load(folder / row["file_name"]) for row in part])
        found = {}
        if beside is not None:
            paths = [beside.get((row["source_file"], row["source_label"], row["label"])) for row in part]
            there = torch.tensor([path is not None for path in paths])
            plain = torch.stack([load(path) if path else image for path, image in zip(paths, result)])
            found = {"unguided_change": _difference(plain, source), "from_unguided": _difference(plain, result)}
            if bridge.classifier is not None:
                found["unguided_entropy"] = entropy(bridge.beliefs(plain))
            found = {name: torch.where(there, values, math.nan) for name, values in found.items()}
        if recogniser is not None:
            target = torch.tensor([recogniser.classes.index(row["label"]) for row in part])
            for name, images in (("source", source), ("result", result), *((("unguided", plain),) if beside is not None else ())):
                right = (recogniser.probabilities(images).cpu().argmax(1) == target).double()
                found[f"recognised_{name}"] = torch.where(there, right, math.nan) if name == "unguided" else right
        table.append(torch.stack([found[name].double() for name in names], 1))
    order = run.gather_rows(torch.tensor([k for batch in batches for k in batch], dtype=torch.int64)).argsort()
    table = run.gather_rows(torch.cat(table))[order]
    return dict(zip(names, table.T))


def summary(rows, judged, *, seed=0, resamples=1000):
    """The results in numbers: {name: {'value', 'low', 'high', 'n'}}, means over images with 95 % bootstrap intervals.

    entropy_rise is the difference to the unguided result of the same source, image by image; so is entropy_change to the
    source itself.
    """
    def column(name):
        return torch.tensor([float(row[name]) if row.get(name) else math.nan for row in rows], dtype=torch.float64)

    found = {"change": column("change")}
    if any("after_entropy" in row for row in rows):
        for what in ("entropy", "margin", "p_target"):
            found |= {f"{what}_{when}": column(f"{when}_{what}") for when in ("before", "after")}
        found["entropy_change"] = found["entropy_after"] - found["entropy_before"]
        found["stayed"] = torch.tensor([float(row["before_class"] == row["after_class"]) for row in rows])
        found |= {f"on_target_{when}": torch.tensor([float(row[f"{when}_class"] == row["label"]) for row in rows])
                  for when in ("before", "after") if any(row.get("after_p_target") for row in rows)}
    found |= judged
    if "unguided_entropy" in judged:
        found["entropy_rise"] = found["entropy_after"] - judged["unguided_entropy"]
    known = {name: values[~values.isnan()] for name, values in found.items()}
    return {name: metrics.share(values, seed=seed, resamples=resamples) for name, values in known.items() if len(values)}


def latent_summary(rows, size):
    """Mean and standard deviation of all latent values together, and the mean correlation of neighbours."""
    mean, std, correlation = (np.array([float(row[f"latent_{name}"]) for row in rows]) for name in ("mean", "std", "correlation"))
    return {"mean": float(mean.mean()), "std": float(np.sqrt((std ** 2 + mean ** 2).mean() - mean.mean() ** 2)),
            "correlation": float(correlation.mean()), "size": size}


def finish(bridge, dataset, rows, judged, folder, *, shown, beside=None, seed=0, **more):
    """Write what the page is made of: bridge.json and shown.npz. Main process only.

    Args:
        shown: how many results, spread evenly over all.
        more: further entries of bridge.json.
    Returns:
        the content of bridge.json.
    """
    folder, groups = Path(folder), {}
    for k, row in enumerate(rows):
        groups.setdefault((row["source_label"], row["label"]), []).append(k)
    maps = [{"source": source, "target": target, "n": len(at), "scores": summary(
        [rows[k] for k in at], {name: values[at] for name, values in judged.items()}, resamples=0)}
            for (source, target), at in groups.items()]
    chosen = spread(rows, shown)
    _keep_pictures(dataset, [rows[k] for k in chosen], folder, beside)
    kept = (*COLUMNS, *BELIEFS, "beliefs")
    result = {"n": len(rows), "scores": summary(rows, judged, seed=seed), "maps": maps,
              "latent": latent_summary(rows, math.prod(bridge.encoder.sampler.shape)),
              "classes": bridge.classes, "shown": [
                  {name: rows[k][name] for name in kept if name in rows[k]}
                  | {name: float(values[k]) for name, values in judged.items() if not values[k].isnan()} for k in chosen], **more}
    write_text(folder / "bridge.json", files.json_text(result))
    return result


def sentence(result):
    """The main numbers of `finish` for a terminal."""
    def said(name, digits=3):
        score = result["scores"].get(name)
        return score and f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"

    parts = [f"mean change {said('change', 1)} of 255 grey levels"]
    if said("entropy_after"):
        parts.append(f"entropy {said('entropy_before')} before, {said('entropy_after')} after")
    if said("entropy_rise"):
        n = result["scores"]["entropy_rise"]["n"]
        parts.append(f"{said('entropy_rise')} above the unguided results of the same {n} sources")
    parts += [f"{name} recognised as the target class {said(f'recognised_{name}')}" for name in ("source", "unguided", "result")
              if said(f"recognised_{name}")]
    return "\n".join(parts)


def spread(items, n):
    """Positions of at most n items, evenly over all."""
    return sorted(set(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int).tolist()))


def _keep_pictures(dataset, rows, folder, beside):
    """shown.npz: source, result, and where there is one, latent and unguided result; `has_` says where."""
    index = {dataset.file_name(i): i for i in range(len(dataset))}
    arrays = {}
    if rows:
        arrays["source"] = to_uint8(torch.stack([dataset[index[row["source_file"]]]["image"] for row in rows]))
        arrays["result"] = torch.stack([load(folder / row["file_name"]) for row in rows])
        others = {"latent": [folder / LATENTS / row["file_name"] for row in rows]}
        if beside is not None:
            others["unguided"] = [beside.get((row["source_file"], row["source_label"], row["label"])) for row in rows]
        for name, paths in others.items():
            images = [load(path) if path is not None and path.is_file() else None for path in paths]
            blank = next((torch.zeros_like(image) for image in images if image is not None), None)
            if blank is not None:
                arrays[name] = torch.stack([blank if image is None else image for image in images])
                arrays[f"has_{name}"] = torch.tensor([image is not None for image in images])
    save_npz(folder / "shown.npz", **{name: nhwc(value) if value.ndim == 4 else value.numpy() for name, value in arrays.items()})


def _difference(a, b):
    """Mean absolute difference of uint8 images (N, C, H, W), in grey levels."""
    return (a.double() - b.double()).abs().flatten(1).mean(1)
