"""The agreement of raters as a table to read and a figure to look at; both take what `agreement.summary` gives."""

import warnings

ALPHAS = {"alpha": "alpha", "consistency": "alpha without leniency", "without_controls": "and without controls"}
PAIRS = 6  # more pairs of raters than these are left to the table
_LEVELS, _DOTS = ("#c6dbef", "#4a90c4", "#08306b"), {"real": "#2a7f3f", "synthetic": "#1f4e79", "control": "#a33b20"}
_INK, _FAINT = "#222222", "#bbbbbb"


def table(summary):
    """A summary as text: tables in Markdown whose columns also line up in a plain file, and the sentences above them."""
    axes, raters = summary["axes"], summary["raters"]
    parts = ["\n".join(f"* {sentence}" for sentence in summary["verdict"]), _counted(summary["counts"])]
    if not raters:
        return "\n\n".join(parts) + "\n"
    parts.append(_rows(
        ["axis", "images", "same score", "alpha", "without leniency", "nor controls", "scores " + "/".join(_all_levels(axes))],
        [[name, axis["alpha"]["images"], _share(axis["same"]), *map(_estimate, (axis[key] for key in ALPHAS)),
          _shares(axis["shares"])] for name, axis in axes.items()]))
    pairs = [[" and ".join(pair["raters"]), name, pair["items"], _share(pair["same"]), _estimate(pair)]
             for name, axis in axes.items() for pair in axis["pairs"]]
    parts += [_rows(["two raters", "axis", "items", "same score", "kappa"], pairs)] * bool(pairs)
    parts.append(_rows(
        ["rater", "axis", "mean (sd)", "bias", "rho with others", "repeats", "same again", "kappa with self"],
        [[name, axis, f"{own['mean']:.2f}" + (f" ({own['sd']:.2f})" if own["sd"] is not None else ""),
          _estimate(own["bias"], "+.2f"), _estimate(own["rho"]), own["self"]["repeats"], _share(own["self"]["same"]),
          _estimate(own["self"])]
         for name, about in raters.items() for axis, own in about["axes"].items()]))
    parts.append(_rows(
        ["rater", "answers", "seconds", "controls called bad", "real called bad", "generated called bad"],
        [[name, f"{about['answers']} of {about['of']}", f"{about['seconds']:.1f}",
          *(_found(about["below_good"][kind]) for kind in ("controls", "real", "generated"))] for name, about in raters.items()]))
    parts.append(_rows(["images of", *axes], [[name, *(_estimate(each) for each in of["axes"].values())]
                                              for name, of in summary["sources"].items()]))
    parts += [_rows(["real and generated", "difference", "AUROC"],
                    [[name, _estimate(each["difference"], "+.2f"), _estimate(each["auroc"])] for name, each in
                     summary["real"].items()])] * bool(summary["real"])
    return "\n\n".join([*parts, summary["method"]]) + "\n"


def _counted(counts):
    return (f"{counts['answers']} answers of {counts['raters']} {'rater' if counts['raters'] == 1 else 'raters'} to a pool of "
            f"{counts['images']} images ({counts['generated']} generated, {counts['real']} real, {counts['controls']} controls; "
            f"{counts['repeats']} shown twice); {counts['scored_by_two']} images have scores of two raters or more.")


def _all_levels(axes):
    return max((list(axis["levels"]) for axis in axes.values()), key=len)


def _rows(header, rows):
    """A Markdown table with padded cells."""
    rows = [header, *([str(cell).replace("|", "/") for cell in row] for row in rows)]
    wide = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in wide) + "|", *lines[1:]])


def _estimate(each, form=".2f"):
    if not each or each["value"] is None:
        return ""
    return f"{each['value']:{form}}" + ("" if each["low"] is None else f" ({each['low']:{form}} to {each['high']:{form}})")


def _share(value):
    return "" if value is None else f"{value:.0%}"


def _shares(shares):
    return "/".join(_share(value) or "-" for value in shares.values())


def _found(share):
    return f"{share['found']} of {share['of']}" if share["of"] else ""


def figure(summary, path):
    """A row for each axis: scores of each rater, coefficients of agreement, mean scores of real and generated images; as PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    axes = summary["axes"]
    marks = {name: _coefficients(summary, name) for name in axes}
    tall = max(len(summary["raters"]), len(summary["sources"]), *map(len, marks.values()), 3)
    with warnings.catch_warnings(), rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
                                                "text.parse_math": False}):  # a $ in a name is no formula
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the table has such names in full
        picture = Figure(figsize=(13, len(axes) * (1.3 + 0.27 * tall)), dpi=110, layout="constrained")
        places = picture.subplots(len(axes), 3, squeeze=False)
        for (name, axis), (shares, agree, means) in zip(axes.items(), places):
            _draw_shares(shares, summary, name, axis)
            _draw_marks(agree, marks[name], f"{name}: agreement")
            for place, text in ((0.0, "chance"), (0.667, "tentative"), (0.8, "reliable")):
                agree.axvline(place, color=_INK if place == 0 else _FAINT, linewidth=0.8, linestyle=":" if place else "-", zorder=0)
                agree.annotate(text, (place, 1), (-2, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                               fontsize=7, color="#666666", ha="right", va="top", rotation=90)
            lowest = min([-0.1, *(each for mark in marks[name] for each in mark[1:3] if each is not None)])
            agree.set_xlim(max(-1.0, lowest - 0.05), 1.03)
            agree.set_xlabel("1 is full agreement, 0 is chance")
            _draw_marks(means, _mean_scores(summary, name), f"{name}: mean score")
            means.set_xlim(0.9, len(axis["levels"]) + 0.1)
            means.set_xticks(range(1, len(axis["levels"]) + 1))
            means.set_xlabel("level; higher is better")
        picture.savefig(path, format="png")


def _coefficients(summary, name):
    """[(words, value, low, high, colour)] of the middle panel."""
    axis = summary["axes"][name]
    found = [(words, axis[key], _INK) for key, words in ALPHAS.items()]
    if len(axis["pairs"]) <= PAIRS:
        found += [(f"kappa, {' and '.join(map(_short, pair['raters']))}", pair, "#1f4e79") for pair in axis["pairs"]]
    found += [(f"kappa, {_short(rater)} and self", about["axes"][name]["self"], "#7a5195")
              for rater, about in summary["raters"].items()]
    return [(words, each["value"], each["low"], each["high"], colour) for words, each, colour in found
            if each and each["value"] is not None]


def _mean_scores(summary, name):
    found = [(source, of["axes"][name], _DOTS[of["kind"]]) for source, of in summary["sources"].items()]
    return [(_short(words), each["value"], each["low"], each["high"], colour) for words, each, colour in found
            if each["value"] is not None]


def _draw_marks(panel, marks, title):
    """Dots with their intervals, a line for each."""
    for row, (_, value, low, high, colour) in enumerate(marks):
        if low is not None:
            panel.plot([low, high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
        panel.plot([value], [row], "o", color=colour, markersize=5)
    panel.set_yticks(range(len(marks)), [words for words, *_ in marks])
    panel.set_ylim(max(len(marks), 4) - 0.4, -1.6)
    panel.set_title(title, loc="left", fontsize=10)
    if not marks:
        panel.text(0.5, 0.5, "not known yet", transform=panel.transAxes, ha="center", color="#666666")


def _draw_shares(panel, summary, name, axis):
    """A bar for each rater, cut into the shares of the levels."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex
    colours, levels = LinearSegmentedColormap.from_list("levels", _LEVELS), list(axis["levels"])
    raters = list(summary["raters"])
    for row, rater in enumerate(raters):
        left = 0.0
        for number, (level, share) in enumerate(summary["raters"][rater]["axes"][name]["shares"].items()):
            panel.barh(row, share, left=left, height=0.7, color=to_hex(colours(number / (len(levels) - 1))), edgecolor="white")
            if share >= 0.07:
                panel.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8,
                           color="white" if number / (len(levels) - 1) > 0.4 else _INK)
            left += share
    panel.set_yticks(range(len(raters)), [_short(rater) for rater in raters])
    panel.set_ylim(max(len(raters), 4) - 0.4, -0.6)
    panel.set_xlim(0, 1)
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)
    panel.set_title(f"{name}: scores of each rater, light is {levels[0]}, dark is {levels[-1]}", loc="left", fontsize=10)


def _short(name, most=26):
    return name if len(name) <= most else f"{name[:most - 1]}…"
