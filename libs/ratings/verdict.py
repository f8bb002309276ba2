"""What the numbers of `agreement.summary` mean, in plain sentences."""

from . import reliability

FEW = 30  # images scored by two raters, below which an interval is too wide to decide anything by
RELIABLE, TENTATIVE = 0.8, 0.667  # Krippendorff (2004, page 241): conclusions, tentative conclusions
REPEATS = 20  # images that a rater saw twice, below which kappa with oneself is not worth a sentence
CONTROLS = 4  # images made wrong on purpose, below which it says nothing how many a rater noticed
BIAS = 0.25  # of a level: smaller shifts between raters are not worth a sentence
ONE_SIDED = 0.9  # of the scores in one level


def verdict(found):
    """A list of sentences, the most important first; `found` is a summary without its verdict."""
    counts, raters = found["counts"], found["raters"]
    if not raters:
        return ["There are no answers yet."]
    said = [_overall(found["signal"])]
    if len(raters) == 1:
        said.append(f"Only {next(iter(raters))} has answered so far, so nothing shows whether another rater would agree. Let a "
                    f"second one answer {FEW} images or more.")
    elif not counts["scored_by_two"]:
        said.append("No image has scores of two raters yet, so nothing shows whether they agree.")
    for name, axis in found["axes"].items():
        said += _about_axis(name, axis, several=counts["scored_by_two"] > 0)
    for rater, about in raters.items():
        said += _about_leniency(rater, about, [other for other in raters if other != rater]) + _about_care(rater, about)
    for name, compared in found["real"].items():
        said += _about_real(name, compared["difference"], compared["auroc"])
    programs = [rater for rater, about in raters.items() if about["scripted"]]
    if programs:
        said.append(f"{_listed(programs)} {'is a program' if len(programs) == 1 else 'are programs'}, not people: these numbers "
                    "are a rehearsal.")
    return said


def only_level(axis):
    """The one level that all scores of an axis have, '' where they differ or there are none."""
    return next((level for level, share in axis["shares"].items() if share == 1), "")


def _overall(signal):
    yes, no, unknown = ([name for name, each in signal.items() if each is kind] for kind in (True, False, None))
    parts = [f"The labels carry a signal in {_listed(yes)}."] if yes else []
    parts += [f"Agreement beyond chance is not shown in {_listed(no)}."] if no else []
    parts += [f"Whether the labels carry a signal in {_listed(unknown)} is not known yet."] if unknown else []
    return " ".join(parts)


def _about_axis(name, axis, *, several):
    alpha, order, only = axis["alpha"], axis["consistency"], only_level(axis)
    if only:
        return [f"{name}: every score is {only} ({axis['levels'][only]}). Scores that never differ cannot tell good images from "
                "bad ones."]
    if not several:
        return []
    if order["value"] is None:
        return [f"{name}: no rater's scores differ among the images that two have scored, which tells nothing about agreement."]
    most = max(axis["shares"], key=axis["shares"].get)
    if order["low"] is None and order["images"] >= reliability.ENOUGH:
        return [f"{name}: {axis['shares'][most]:.0%} of the scores are {most}, and the others are too few to tell agreement "
                "from chance."]
    if order["low"] is None:
        return [f"{name}: {order['images']} images with scores of two raters are too few to tell agreement from chance: {FEW} or "
                "more are needed."]
    value = f"alpha without leniency {_said(order)}, {order['images']} images"
    if order["low"] <= 0:
        said = [f"{name}: agreement beyond chance is not shown ({value}). A filter that learns from these scores may learn noise."]
        if order["images"] >= FEW and order["high"] >= TENTATIVE:
            said.append(f"{name}: the interval reaches as far as {order['high']:.2f}, so good agreement is not excluded either. "
                        "More images would tell.")
    else:
        said = [f"{name}: raters order the images alike, beyond chance ({value}). {_how_reliable(order['value'])}"]
        said += _about_numbers(name, alpha, order) + _about_controls(name, axis["without_controls"])
    if order["images"] < FEW:
        said.append(f"{name}: only {order['images']} images have scores of two raters; with {FEW} or more the interval is worth "
                    "deciding by.")
    if axis["shares"][most] >= ONE_SIDED:
        said.append(f"{name}: {axis['shares'][most]:.0%} of the scores are {most}. With so little spread alpha can be low "
                    "although raters mostly say the same.")
    return said


def _about_numbers(name, alpha, order):
    if alpha["value"] is None or order["value"] - alpha["value"] < 0.1:
        return []
    return [f"{name}: but they do not use the same numbers (alpha {_said(alpha)}). Compare scores of different raters only after "
            "each rater's leniency is taken out."]


def _about_controls(name, rest):
    if not rest or (rest["low"] is not None and rest["low"] > 0):
        return []
    return [f"{name}: the agreement rests on the images that were made wrong on purpose. On the others it is not shown "
            + ("(their scores do not differ)." if rest["value"] is None else f"({_said(rest)}).")]


def _how_reliable(alpha):
    if alpha >= RELIABLE:
        return f"That is reliable (at least {RELIABLE}, Krippendorff 2004)."
    needed = f"the mean of about {reliability.raters_for(alpha, RELIABLE)} raters would reach {RELIABLE}"
    if alpha >= TENTATIVE:
        return f"That allows tentative conclusions ({TENTATIVE} to {RELIABLE}, Krippendorff 2004); {needed}."
    return (f"But it is below {TENTATIVE}, from which Krippendorff (2004) allows tentative conclusions: single scores are noisy; "
            f"{needed}.")


def _about_leniency(rater, about, others):
    said, whom = [], others[0] if len(others) == 1 else "the others"
    for sign, words in ((-1, "lower"), (1, "higher")):
        if sign < 0 and len(others) == 1:
            continue  # of two raters one sentence says it for both
        shifts = {name: axis["bias"] for name, axis in about["axes"].items() if _is_shift(axis["bias"], sign)}
        if shifts:
            told = _listed([f"{name} by {sign * bias['value']:.2f} levels ({bias['low']:+.2f} to {bias['high']:+.2f})"
                            for name, bias in shifts.items()])
            said.append(f"{rater} scores {words} than {whom}: {told}. Take this out before scores are averaged.")
    return said


def _is_shift(bias, sign):
    return bias["low"] is not None and sign * bias["value"] >= BIAS and min(sign * bias["low"], sign * bias["high"]) > 0


def _about_care(rater, about):
    """What repeats and controls say of a rater, where they are enough to say something."""
    said = []
    for name, axis in about["axes"].items():
        own = axis["self"]
        if own["repeats"] >= REPEATS and own["low"] is not None and own["low"] <= 0:
            said.append(f"{rater} gave {own['same']:.0%} of {own['repeats']} images shown twice the same score for {name}, not "
                        f"clearly more than these scores would meet by chance (kappa {_said(own)}).")
    controls, real, generated = (about["below_good"][kind] for kind in ("controls", "real", "generated"))
    other, kind = (real, "real") if real["of"] >= CONTROLS else (generated, "generated")
    if controls["of"] >= CONTROLS and other["of"] and controls["low"] <= other["value"]:
        said.append(f"{rater} called {controls['found']} of {controls['of']} images bad that were made wrong on purpose, and "
                    f"{other['found']} of {other['of']} {kind} ones: that does not show that {rater} sees the difference.")
    return said


def _about_real(name, difference, auroc):
    if difference["low"] is None:
        return []
    if difference["low"] <= 0 <= difference["high"]:
        return [f"{name}: real and generated images do not clearly differ (real minus generated {_said(difference)} levels)."]
    return [f"{name}: real images score {'higher' if difference['value'] > 0 else 'lower'} than generated ones (difference "
            f"{_said(difference)} levels). A real one scores above a generated one with a chance of {_said(auroc)}, ties counted "
            "half."]


def _said(estimate):
    if estimate["low"] is None:
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f}, {estimate['low']:.2f} to {estimate['high']:.2f}"


def _listed(names):
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
