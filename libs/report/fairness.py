"""What must be said before scores of several runs are compared: what makes them incomparable, and what should be known."""

from collections import Counter

from libs.report.yardsticks import difference, feature_names, judge, marks, told, unlike, yardstick

TIMES_APART = 1.1  # ratio of training times above which they are called different
DATA_OPTIONS = ("name", "path", "resolution", "split", "holdout", "classes", "drop_classes", "size", "seed", "label_column", "crop")


def target(runs):
    """(n, seed) of the evaluation that most of the runs have, with more images where as many have each; None without any."""
    found = Counter((run.evaluation["n"], run.evaluation.get("seed")) for run in runs if run.evaluation)
    return max(found, key=lambda each: (found[each], each[0])) if found else None


def faults(runs, name=""):
    """What makes a comparison invalid or incomplete: [{'text', 'commands'}], each naming the runs.

    name: the evaluation that was asked for, '' for the main one that all share.
    """
    found = []
    n, seed = target(runs) or (None, None)

    def say(text, again=()):
        found.append({"text": text, "commands": [run.command(n, seed, name) for run in again]})

    missing = [run for run in runs if not run.evaluation]
    if missing:
        which = f"no evaluation {name!r}" if name else "no evaluation"
        say(f"{listed(missing)} {'has' if len(missing) == 1 else 'have'} {which}: there are neither scores nor images to compare. "
            "To make it:", missing)
    have = [run for run in runs if run.evaluation]
    if have:
        found_n = {run: (run.evaluation["n"], run.evaluation.get("seed")) for run in have}
        if len({each[0] for each in found_n.values()}) > 1:
            say("Different numbers of images were scored: " + per_run(have, lambda run: found_n[run][0]) + ". Fréchet distances, "
                "recall, coverage and Inception scores move with that number and are not compared.",
                [run for run in have if found_n[run] != (n, seed)])
        elif len(set(found_n.values())) > 1:
            say("The images are of different seeds: " + per_run(have, lambda run: found_n[run][1]) + ". They do not begin with the "
                "same noise.", [run for run in have if found_n[run] != (n, seed)])
        common = Counter(marks(run.evaluation) for run in have).most_common(1)[0][0]
        base = next(run for run in have if marks(run.evaluation) == common)
        for other in have:
            for text in yardsticks_apart(base, other) if other is not base else ():
                why = because(base, other)
                say(text + (f" Their configs differ: {why}." if why else ""))
    for text in (classes_apart(runs), resolutions_apart(runs), shares_apart(have), filters_apart(have), trained_apart(runs)):
        if text:
            say(text)
    return found


def yardsticks_apart(first, other):
    """Sentences on the judges that two runs have in common but that are not the same; one where all of it is the real images."""
    if not set(first.evaluation["scores"]) & set(other.evaluation["scores"]):
        return [f"{first.name} and {other.name} have no metric in common: one is scored by "
                f"{', '.join(feature_names(first.evaluation)) or 'nothing'}, the other by "
                f"{', '.join(feature_names(other.evaluation)) or 'nothing'}. Give both the same config.metrics.features."]
    real = [each.evaluation["real"].get("fingerprint") for each in (first, other)]
    if all(real) and real[0] != real[1]:
        return [f"{other.name} is compared with other real images than {first.name}: {told(other.evaluation)} beside "
                f"{told(first.evaluation)}. Their scores are not comparable."]
    shared = dict.fromkeys(judge(first.evaluation, metric) for metric in first.evaluation["scores"]
                           if metric in other.evaluation["scores"])
    said = []
    for name in shared:
        own, its = yardstick(other.evaluation, name), yardstick(first.evaluation, name)
        if own is None or its is None:
            metric = next(each for each in other.evaluation["scores"] if judge(other.evaluation, each) == name)
            said.append(f"{other.name}: {difference(other, first, metric)}.")
        elif own != its:
            said.append(f"{other.name} is {unlike(other.evaluation, first.evaluation, name)} than {first.name}. Scores by {name} "
                        "are not comparable. A classifier of the data is trained once in a working folder: evaluate all runs in "
                        "one.")
    return said


def because(first, other):
    """'config.dataset.holdout is 0.1, there 0.0': how the data of two runs differ by their configs; '' where they do not."""
    ours, theirs = first.section("dataset"), other.section("dataset")
    apart = [f"config.dataset.{key} is {theirs[key]!r}, there {ours[key]!r}" for key in DATA_OPTIONS
             if key in ours and key in theirs and ours[key] != theirs[key]]
    if first.config.get("seed") != other.config.get("seed"):
        apart.append(f"config.seed, on which a classifier of the data depends, is {other.config.get('seed')}, there "
                     f"{first.config.get('seed')}")
    if ours.get("random_flip") != theirs.get("random_flip"):
        apart.append(f"config.dataset.random_flip is {theirs.get('random_flip')}, there {ours.get('random_flip')}")
    return "; ".join(apart)


def classes_apart(runs):
    if len({tuple(run.classes) for run in runs}) < 2:
        return ""
    return "The runs do not know the same classes: " + per_run(
        runs, lambda run: ", ".join(run.classes) or "no labels", apart="; ") + ". Scores of all images do not ask the same of them."


def resolutions_apart(runs):
    sizes = {run: resolution(run) for run in runs}
    if len({size for size in sizes.values() if size}) < 2:
        return ""
    return "The images have different sizes: " + per_run(runs, lambda run: f"{sizes[run]} pixels") + "."


def resolution(run):
    """Pixels a side of a run's images; None where nothing says so."""
    shape = run.evaluation["real"].get("shape") if run.evaluation else None
    return (shape or [None])[-1] or run.section("dataset").get("resolution")


def shares_apart(have):
    """Classes of which one evaluation has another share of images than the others."""
    counts = {run: {name: max(entry["n"] for entry in row.values()) for name, row in run.evaluation["per_class"].items() if row}
              for run in have}
    counts = {run: row for run, row in counts.items() if row}
    shares = {run: {name: round(n / sum(row.values()), 2) for name, n in row.items()} for run, row in counts.items()}
    if len({tuple(sorted(row.items())) for row in shares.values()}) < 2 or len({frozenset(row) for row in shares.values()}) > 1:
        return ""  # equal; or other classes, which is said elsewhere
    return ("The classes are not asked for in the same shares: " + per_run(shares, lambda run: ", ".join(
        f"{name} {n}" for name, n in counts[run].items()), apart="; ") + ". Scores of all images are then of different mixtures; "
        "set config.sample.labels alike.")


def filters_apart(have):
    """Evaluations of images that a filter chose beside others."""
    rules = {run: run.evaluation["sampling"].get("filter", "") for run in have}
    if len(set(rules.values())) < 2:
        return ""
    return "Images of some runs were chosen by a filter, and of others not, or by another: " + per_run(
        have, lambda run: rules[run] or "none", apart="; ") + ". Their scores tell of generator and filter together."


def trained_apart(runs):
    """Runs whose training looked at other images, by the fingerprint that pre-flight noted."""
    known = {run: run.trained_on for run in runs if run.trained_on}
    if len(set(known.values())) < 2:
        return ""
    first = next(iter(known))
    others = [run for run in known if known[run] != known[first]]
    return (f"{listed(others)} {'was' if len(others) == 1 else 'were'} trained on other images than {first.name}, or on images "
            "cut or paired otherwise: the fingerprints that pre-flight noted differ.")


def remarks(runs):
    """What a reader should know and what invalidates nothing, as sentences."""
    have = [run for run in runs if run.evaluation]
    facts = {run: run.facts() for run in runs}
    said = []

    def alike(fact, among):
        return len({str(facts[run][fact]) for run in among if facts[run][fact] is not None}) < 2

    if not any(run.classes for run in runs):
        said.append("None of the runs knows labels: there are no scores by class.")
    special = [run for run in have if run.evaluation.get("special")]
    if special:
        said.append("Special evaluations are compared, as no ordinary ones are shared: " + per_run(
            special, lambda run: ", ".join(run.evaluation["special"]), apart="; ") + ".")
    if not alike("sampler", have):
        said.append("Samplers differ: " + per_run(have, lambda run: facts[run]["sampler"], apart="; ")
                    + ". Scores are those of network and sampler together.")
    if not alike("chosen_by", runs):
        said.append("Checkpoints were chosen by different rules: " + per_run(runs, lambda run: facts[run]["chosen_by"])
                    + ". A checkpoint chosen by a score against the real images looks a little better by that score.")
    times = {run: facts[run]["training_seconds"] for run in runs if facts[run]["training_seconds"]}
    if times and max(times.values()) > TIMES_APART * min(times.values()):
        said.append(f"Training took {max(times.values()) / min(times.values()):.1f} times as long for "
                    f"{max(times, key=times.get).name} as for {min(times, key=times.get).name}.")
    if not (alike("training_device", runs) and alike("training_processes", runs) and alike("training_precision", runs)):
        said.append("Times and images per second are of different machines or precisions: " + per_run(
            runs, lambda run: machine(facts[run], "training"), apart="; ") + ". They are not comparable.")
    if not (alike("sampling_device", have) and alike("sampling_precision", have) and alike("sampling_batch", have)):
        said.append("Seconds per image are of different machines, precisions or batches: " + per_run(
            have, lambda run: f"{machine(facts[run], 'sampling')}, batch {facts[run]['sampling_batch']}", apart="; ") + ".")
    for run in runs:
        done, asked = facts[run]["steps"], facts[run]["steps_asked"]
        if asked and done < asked:
            said.append(f"{run.name} has done {done:,} of its {asked:,} steps.")
        if len(run.batch_sizes) > 1:
            said.append(f"{run.name} went on with another batch size ({', '.join(map(str, sorted(run.batch_sizes)))}): images seen "
                        f"and training time are as if it had been {run.batch} all along.")
    if any(run.evaluation and not run.evaluation["sampling"] for run in runs):
        old = [run for run in have if not run.evaluation["sampling"]]
        said.append(f"{listed(old)}: seconds per image and operations were not recorded by {'its' if len(old) == 1 else 'their'} "
                    "evaluation; evaluating again records them.")
    without = [run for run in have if all(entry["low"] is None for entry in run.evaluation["scores"].values())]
    if without:
        said.append(f"{listed(without)}: no intervals, so no value is marked beside {'it' if len(without) == 1 else 'them'} "
                    "(config.metrics.bootstrap was 0).")
    return said


def evaluations_say(runs):
    """What the evaluations themselves warn of: {sentence: names of the runs}."""
    said = {}
    for run in runs:
        for text in (run.evaluation or {}).get("warnings") or []:
            said.setdefault(str(text), []).append(run.name)
    return said


def machine(facts, what):
    """'NVIDIA H100, 2 processes, bf16' of the facts 'training_...' or 'sampling_...'."""
    processes, precision = facts[f"{what}_processes"], facts[f"{what}_precision"]
    parts = [facts[f"{what}_device"] or "not recorded", f"{processes} processes" if (processes or 1) > 1 else "",
             {"no": "float32"}.get(precision, precision)]
    return ", ".join(part for part in parts if part)


def listed(runs):
    return ", ".join(run.name for run in runs)


def per_run(runs, words, apart=", "):
    return apart.join(f"{run.name}: {words(run)}" for run in runs)
