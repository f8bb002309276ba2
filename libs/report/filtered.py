"""What a filter did to an evaluation: scores with and without it, what it accepted, and pictures of both kinds."""

import numpy as np

from libs.report.figures import png

MOST = 8  # pictures of a class, accepted and rejected
KINDS = 40  # lines of the table of acceptance


def filtered(found, arrays, classes, score):
    """What the page shows of the filter of one evaluation, or None where none was used.

    Args:
        found: scores.json. arrays: of shown.npz, {} where there is none.
        score: turns a score of scores.json into what the page shows.
    Returns:
        {'words', 'scores': [{name, before, after}], 'acceptance': [{name, made, asked, drawn, rate, interval}], 'left_out',
        'rows': [{name, accepted: [(picture, score)], rejected: [(picture, score, text)]}], 'size'}
    """
    told = found.get("filter")
    if not isinstance(told, dict):
        return None
    before = {name: score(entry) for name, entry in (found.get("unfiltered") or {}).items()}
    after = {name: score(entry) for name, entry in (found.get("scores") or {}).items() if name in before}
    acceptance = told.get("acceptance") or {}
    kinds = acceptance.get("per_kind") or {}
    lines = [("all", acceptance), *sorted(kinds.items(), key=lambda item: item[1].get("rate", 1.0))] if len(kinds) > 1 else [
        ("all", acceptance)]
    return {"path": told.get("path"), "rule": told.get("rule"), "useful": told.get("useful", True),
            "scores": [{"name": name, "before": before[name], "after": after[name]} for name in after],
            "acceptance": [{"name": name, **part} for name, part in lines[:KINDS]], "left_out": max(0, len(lines) - KINDS),
            **_pictures(arrays, classes, found.get("rejected_texts") or [])}


def _pictures(arrays, classes, texts):
    accepted, rejected = arrays.get("arr_0", ()), arrays.get("arr_11", ())
    judged, scores = arrays.get("arr_13", ()), arrays.get("arr_14", ())
    if not len(rejected) or not len(accepted) == len(scores) or not len(rejected) == len(judged):
        return {"rows": [], "size": 0}
    labels = [arrays.get(name, np.zeros(len(images))).ravel().astype(int)
              for name, images in (("arr_1", accepted), ("arr_12", rejected))]
    texts = list(texts) if len(texts) == len(rejected) else [""] * len(rejected)
    rows = []
    for label in np.unique(labels[1]).tolist():
        ours, theirs = (np.flatnonzero(each == label)[:MOST] for each in labels)
        rows.append({"name": classes[label] if label < len(classes) else "",
                     "accepted": [{"image": png(accepted[i]), "score": float(scores[i])} for i in ours],
                     "rejected": [{"image": png(rejected[i]), "score": float(judged[i]), "text": texts[i]} for i in theirs]})
    return {"rows": rows, "size": rejected.shape[2]}
