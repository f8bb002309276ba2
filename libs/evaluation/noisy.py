"""A classifier of noisy images, judged on held-out ones at several noise levels: how often it is right, and how well it knows.

Guidance follows the gradient of what a classifier believes, so its belief has to be worth something at every noise level:
accuracy alone does not tell. Every image is seen once at each level, unaugmented; its noise is a function of (seed, image,
level) alone, so neither batch size nor the number of processes changes a number.
"""

import math
import os
import time
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from libs import data, engine, files, metrics, pipeline
from libs.engine.checkpoint import write_text

BINS = 15  # of the probability of the class that is said, for calibration
TEMPERATURES = 0.05, 20.0  # searched between
LOGGED_CLASSES = 20  # during training; beyond it single classes stand in scores.json alone
MEANINGS = {
    "accuracy": ("higher", "Share of held-out images whose most probable class is theirs; like all without a level, the mean over "
                           "the noise levels."),
    "balanced_accuracy": ("higher", "Mean over the classes of the share of their images that are recognised: rare ones count as "
                                    "much."),
    "nll": ("lower", "Negative log-likelihood in nats: mean of -log of the probability given to the true class. Whoever knows "
                     "nothing has log of the number of classes."),
    "ece": ("lower", f"Expected calibration error: how far the probability of the class said is from the share in which it is "
                     f"right, over {BINS} bins."),
    "brier": ("lower", "Squared distance of the class probabilities from the truth, 0 to 2."),
    "temperature": ("", "Logits divided by it are calibrated best; above 1 the classifier is too sure. One number for all levels, "
                        "fitted on these very images."),
    "nll_tempered": ("lower", "nll after division of the logits by the temperature."),
    "ece_tempered": ("lower", "ece after division of the logits by the temperature."),
}


class Judged(NamedTuple):
    """What a classifier says of N held-out images at L noise levels, in the order of the data; the same on every process."""

    labels: torch.Tensor               # int64 (N,)
    said: torch.Tensor                 # int64 (N, L), the most probable class
    confidence: torch.Tensor           # float64 (N, L), its probability
    nll: torch.Tensor                  # float64 (N, L)
    brier: torch.Tensor                # float64 (N, L)
    tempered_confidence: torch.Tensor  # float64 (N, L), after division of the logits by the temperature
    tempered_nll: torch.Tensor         # float64 (N, L)
    temperature: float
    times: dict                        # {name of the level, such as 't0.25': time in [0, 1]}
    classes: list

    @property
    def right(self):
        """float64 (N, L): 1 where the most probable class is the true one."""
        return (self.said == self.labels[:, None]).double()


class Reliability(NamedTuple):
    """How sure and how right in each bin of confidence, float64 (bins,); NaN where there is no image."""

    count: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor


def check_data(config, dataset, held_out=None):
    """Raise ValueError unless the classifier of config.nnet can be trained on these images and judged on the held-out ones."""
    if dataset.labels is None or len(dataset.classes) < 2:
        raise ValueError(f"the data set {dataset.name!r} has {'no labels' if dataset.labels is None else 'one class'}: a "
                         "classifier needs at least two classes, as class folders or as a column of metadata.csv "
                         "(config.dataset.label_column)")
    net, count = config.nnet, len(dataset.classes)
    if net.out_channels not in (0, count):
        raise ValueError(f"config.nnet.out_channels is {net.out_channels}, the data have {count} classes: "
                         f"set it to {count}, or to 0, which takes what the data have")
    channels, side = dataset.shape[0], dataset.shape[-1]
    if net.in_channels != channels:
        raise ValueError(f"config.nnet.in_channels is {net.in_channels}, the images have {channels}: set "
                         f"--config.nnet.in_channels={channels}, or config.dataset.channels where the data set has it")
    if net.image_size != side:
        raise ValueError(f"config.nnet.image_size is {net.image_size}, the images have {side} pixels a side: set "
                         f"--config.nnet.image_size={side} or --config.dataset.resolution={net.image_size}")
    if held_out is not None and list(held_out.classes) != list(dataset.classes):
        raise ValueError(f"the held-out images have the classes {held_out.classes}, the training images {dataset.classes}")


def start_from(net, path, *, without=()):
    """Copy the weights of another classifier (a run folder or file) into a fresh one, but those that begin with one of `without`.

    Raises:
        ValueError: they do not fit; where it is the number of classes, that is said.
    """
    weights, own = engine.load_weights(path)[0], net.state_dict()
    head = list(own)[-1]  # the last layer's bias, a number for each class
    if head in weights and not head.startswith(tuple(without)) and len(weights[head]) != len(own[head]):
        raise ValueError(f"the classifier of config.train.init={str(path)!r} tells {len(weights[head])} classes apart, the data "
                         f"have {len(own[head])}: start from one with as many, or take all but its head by "
                         "--config.train.init_without=\"('out.',)\"")
    pipeline.start_from(net, weights, without=without)


def noise_times(levels, schedule, grid=None):
    """{'t0.25': time}: each noise level in [0, 1] as the nearest time that training draws; 0 is the clean image.

    Args:
        schedule: diffusion.schedule(...).
        grid: times that training is restricted to, as `schedule.times` gives them; None for all of the schedule's.
    """
    levels = [float(level) for level in levels]
    if not levels or len(set(levels)) < len(levels) or not 0 <= min(levels) <= max(levels) <= 1:
        raise ValueError(f"config.metrics.levels={tuple(levels)}: different times in [0, 1] are needed, 0 is the clean image")
    if grid is None and schedule.steps:
        grid = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    known = None if grid is None else grid[grid > 0]

    def nearest(level):
        return level if level == 0 or known is None else known[(known - level).abs().argmin()].item()

    return {f"t{level:g}": nearest(level) for level in levels}


def judge(run, classifier, dataset, times, *, batch_size, workers=0):
    """Ask a classifier about every image of a data set at every noise level; called by every process.

    Args:
        run: engine.Run; its seed is that of the noise.
        classifier: pipeline.NoisyClassifier.
        dataset: labelled held-out images.
        times: from `noise_times`.
        batch_size: images per network call on each process.

    Returns:
        `Judged`.
    """
    mine, schedule, width = range(run.rank, len(dataset), run.world), classifier.schedule, len(classifier.classes)
    logits = [torch.empty(0, len(times), width)]
    labels, indices = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for batch in data.in_order(dataset, mine, batch_size, workers):
        x, found = batch["image"].to(run.device), []
        for level, t in enumerate(times.values()):
            x_t = x if t == 0 else schedule.add_noise(x, noise(run.seed, batch["index"], level, x.shape[1:]).to(x), t)
            with torch.no_grad(), run.accelerator.autocast():
                found.append(classifier.logits(x_t, t, schedule).float().cpu())
        logits.append(torch.stack(found, dim=1))
        labels.append(batch["label"].clone())  # a tensor from a data worker would hold on to its shared memory
        indices.append(batch["index"].clone())
    return judged(torch.cat(logits), torch.cat(labels), torch.cat(indices), times, classifier.classes, gather=run.gather_rows)


def noise(seed, indices, level, shape):
    """Standard normal noise (len(indices), *shape) of images at one noise level, each by (seed, image, level) alone."""
    drawn = []
    for index in indices:
        state = np.random.SeedSequence([seed, int(index), level]).generate_state(1, np.uint64)[0]
        drawn.append(torch.randn(shape, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))))
    return torch.stack(drawn)


def judged(logits, labels, indices, times, classes, *, gather=lambda rows: rows):
    """`Judged` from logits (n, L, K) of this process's images; `gather` joins the rows of all processes.

    Only a few numbers of each image travel: logits of a thousand classes stay where they are.
    """
    best = temperature(logits, labels, gather=gather)
    rows = torch.empty(len(labels), len(times), 6, dtype=torch.float64)
    for level in range(len(times)):
        logp, tempered = (each.log_softmax(1).double() for each in (logits[:, level], logits[:, level] / best))
        p, true = logp.exp(), labels[:, None]
        own = logp.gather(1, true)[:, 0]
        rows[:, level] = torch.stack([
            p.argmax(1).double(), p.amax(1), -own, p.square().sum(1) - 2 * own.exp() + 1,
            tempered.exp().amax(1), -tempered.gather(1, true)[:, 0]], dim=1)
    order = gather(indices).argsort()
    rows, labels = gather(rows)[order], gather(labels)[order]
    said, *rest = rows.unbind(2)
    return Judged(labels, said.long(), *rest, temperature=best, times=dict(times), classes=list(classes))


def temperature(logits, labels, *, gather=lambda rows: rows):
    """The T that makes the mean of -log softmax(logits / T)[label] smallest (Guo et al. 2017), searched in TEMPERATURES.

    Args:
        logits: float32 (n, L, K) of this process's n images.
        gather: joins the rows of all processes; all of them then find the same T.
    """
    from scipy.optimize import minimize_scalar
    count = gather(torch.tensor([len(labels)])).sum().item()

    def loss(log_t):
        sums = [F.cross_entropy(logits[:, level].double() / math.exp(log_t), labels, reduction="sum")
                for level in range(logits.shape[1])]  # one level at a time: with a thousand classes all would be large
        return gather(torch.stack(sums)[None]).sum().item() / count

    found = minimize_scalar(loss, bounds=[math.log(bound) for bound in TEMPERATURES], method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)


def reliability(confidence, right, *, bins=BINS):
    """`Reliability` of confidences and hits (N,), in bins of equal width."""
    number = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count, sure, hits = (torch.bincount(number, weights=each.double(), minlength=bins)
                         for each in (torch.ones_like(confidence), confidence, right))
    return Reliability(count, sure / count, hits / count)


def calibration_error(confidence, right, *, bins=BINS):
    """Expected calibration error of confidences and hits (N,): mean over images of |confidence - accuracy| of their bin."""
    found = reliability(confidence, right, bins=bins)
    return ((found.confidence - found.accuracy).abs() * found.count).nansum().div(found.count.sum()).item()


def balanced_accuracy(right, labels):
    """Mean over the classes that occur of the mean of `right` (N,) over their images."""
    count = torch.bincount(labels)
    return (torch.bincount(labels, weights=right)[count > 0] / count[count > 0]).mean().item()


def numbers(found):
    """A `Judged` as {name: number} for metrics.jsonl: means over the levels, each level ('_t0.25'), classes ('accuracy_of_X')."""
    values = {name: _value(measure, len(found.labels)) for name, measure in _measures(found).items()}
    values["temperature"] = found.temperature
    for level, name in enumerate(found.times):
        values |= {f"{measure}_{name}": _value(of, len(found.labels)) for measure, of in _measures(found, [level]).items()
                   if not measure.endswith("tempered")}
    present = found.labels.unique().tolist() if len(found.classes) <= LOGGED_CLASSES else []
    values |= {f"accuracy_of_{found.classes[label]}": found.right[found.labels == label].mean().item() for label in present}
    return values | {"n": len(found.labels)}


def record(found, *, resamples=0, seed=0):
    """A `Judged` as the content of scores.json: scores with intervals over images, classes, reliability and levels."""
    options, n = dict(resamples=resamples, seed=seed), len(found.labels)
    scores = {name: _score(name, measure, n, **options) for name, measure in _measures(found).items()}
    scores["temperature"] = {"value": found.temperature, "low": None, "high": None, "n": n} | _said("temperature")
    per_class = {}
    for label in found.labels.unique().tolist():
        right = found.right[found.labels == label]
        columns = {"accuracy": right.mean(1)} | {f"accuracy_{name}": each for name, each in zip(found.times, right.T)}
        per_class[found.classes[label]] = {name: metrics.share(each, **options) for name, each in columns.items()}
    for level, name in enumerate(found.times):
        alone = {"meaning": f"The same at noise level {name[1:]} alone."}
        scores |= {f"{measure}_{name}": _score(measure, of, n, **options) | alone
                   for measure, of in _measures(found, [level]).items() if not measure.endswith("tempered")}
    curves = {"before": found.confidence, "after": found.tempered_confidence}
    curves = {name: reliability(each.flatten(), found.right.flatten()) for name, each in curves.items()}
    result = {"n": n, "scores": scores, "per_class": per_class, "levels": dict(found.times), "warnings": _warnings(found),
              "reliability": {name: [[None if value != value else value for value in row.tolist()] for row in each]
                              for name, each in curves.items()}}
    if resamples:
        result["interval"] = f"95 % bootstrap over images, {max(resamples, 200)} draws"
    return result


def write(run, found, folder, *, step, nnet, reference, resamples=0, begun=None, chosen_by=""):
    """Write scores.json and reliability.png of a `Judged` into `folder` on the main process; returns what `table` says.

    Args:
        step, nnet, reference: which network was judged, and on which images, in words.
        resamples: of the images, for intervals; 0 for none.
        begun: time.perf_counter() when the evaluation began.
        chosen_by: measure by which evaluations on the same images chose the network; '' where none did.
    """
    if not run.is_main:
        return ""
    result = {"n": len(found.labels), "step": step, "nnet": nnet, "seed": run.seed, "reference": reference,
              **record(found, resamples=resamples, seed=run.seed)}
    if chosen_by and (judged := _evaluations(run)) > 1:
        result["warnings"].append(f"these images also chose this checkpoint, the best of {judged} by {chosen_by}: its scores on "
                                  "them are a little too good")
    if begun is not None:
        result["seconds"] = round(time.perf_counter() - begun, 1)
    folder.mkdir(parents=True, exist_ok=True)
    draw(found, folder / "reliability.png", scores=result["scores"])
    write_text(folder / "scores.json", files.json_text(result))
    return table(result)


def table(result):
    """The scores of a classifier as text: a line for each noise level, and the means of all."""
    columns = ("accuracy", "balanced_accuracy", "nll", "ece", "brier")
    lines = [f"{result['n']} images of {result['reference']}, step {result['step']}",
             "".join(f"{name:>18s}" for name in ("noise level", *columns))]
    for title, ending in [*((name, f"_{name}") for name in result["levels"]), ("mean", "")]:
        values = (result["scores"][name + ending]["value"] for name in columns)
        lines.append(f"{title:>18s}" + "".join(f"{value:18.4f}" for value in values))
    scores = {name: result["scores"][name]["value"] for name in ("temperature", "nll_tempered", "ece_tempered")}
    lines.append("temperature {temperature:.3f}, after it nll {nll_tempered:.4f} and ece {ece_tempered:.4f}".format(**scores))
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


def draw(found, path, *, scores):
    """A figure of a `Judged`: accuracy against the noise level, and how sure against how right; PNG, in one step."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = [float(name[1:]) for name in found.times]
    order = np.argsort(levels)
    for name, colour, shift in (("accuracy", "#1f5f86", -0.004), ("balanced_accuracy", "#b3541e", 0.004)):
        of = [scores[f"{name}_{level}"] for level in found.times]
        values = np.array([each["value"] for each in of])
        below, above = (np.array([abs(each[end] - each["value"]) if each[end] is not None else 0.0 for each in of])
                        for end in ("low", "high"))
        left.errorbar(np.array(levels)[order] + shift, values[order], yerr=np.stack([below, above])[:, order], color=colour,
                      marker="o", markersize=4, linewidth=1.5, capsize=2, label=name.replace("_", " "))
    left.axhline(1 / len(found.classes), color="grey", linewidth=1, linestyle=":", label=f"chance, {len(found.classes)} classes")
    left.set(xlabel="noise level t (0: clean, 1: noise)", ylabel="accuracy on held-out images", ylim=(0, 1.02))
    for ending, confidence, colour in (("", found.confidence, "#1f5f86"), ("_tempered", found.tempered_confidence, "#b3541e")):
        curve = reliability(confidence.flatten(), found.right.flatten())
        some = curve.count > 0
        label = f"as it is: ECE {scores['ece']['value']:.3f}" if not ending else (
            f"at temperature {found.temperature:.2f}: ECE {scores['ece_tempered']['value']:.3f}")
        right.plot(curve.confidence[some], curve.accuracy[some], color=colour, linewidth=1.5, label=label)
        right.scatter(curve.confidence[some], curve.accuracy[some], s=8 + 150 * curve.count[some] / curve.count.sum(), color=colour)
    right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":", label="as sure as right")
    right.set(xlabel="probability of the class said", ylabel="share in which it is right", xlim=(0, 1.02), ylim=(0, 1.02))
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color="#dedbd2", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    left.set_title(f"{len(found.labels)} images at each level", fontsize=10)
    right.set_title("all levels together; dots as large as their share of images", fontsize=10)
    staged = path.with_name(f".staging-{path.name}-{os.getpid()}")
    figure.savefig(staged, format="png")
    staged.replace(path)


def _evaluations(run):
    """How many checkpoints of a run were evaluated during training."""
    return sum(line["kind"] == "eval" for line in engine.read_metrics(run.folder / "metrics.jsonl"))


def _measures(found, columns=slice(None)):
    """{name: contributions (N,) whose mean it is, or a function of rows}, over some of the levels; means of several."""
    right, confidence = found.right[:, columns], found.confidence[:, columns]

    def error(confidence):
        return lambda rows: sum(calibration_error(sure[rows], hits[rows])
                                for sure, hits in zip(confidence.T, right.T)) / right.shape[1]

    return {"accuracy": right.mean(1),
            "balanced_accuracy": lambda rows: balanced_accuracy(right.mean(1)[rows], found.labels[rows]),
            "nll": found.nll[:, columns].mean(1), "ece": error(confidence), "brier": found.brier[:, columns].mean(1),
            "nll_tempered": found.tempered_nll[:, columns].mean(1), "ece_tempered": error(found.tempered_confidence[:, columns])}


def _value(measure, n):
    return measure(torch.arange(n)) if callable(measure) else measure.mean().item()


def _score(name, measure, n, *, resamples, seed):
    """A measure as a score of scores.json; intervals of shares by resampling, and shares stay within 0 and 1."""
    if not callable(measure):
        return metrics.share(measure, resamples=resamples, seed=seed) | _said(name)
    value, low, high = _value(measure, n), None, None
    if resamples:
        low, high = (min(max(end, 0.0), 1.0)
                     for end in metrics.bootstrap(measure, n, value=value, resamples=max(resamples, 200), seed=seed))
    return {"value": value, "low": low, "high": high, "n": n} | _said(name)


def _said(name):
    better, meaning = MEANINGS[name]
    return {"better": better, "meaning": meaning} if better else {"meaning": meaning}


def _warnings(found):
    """What a reader must be told beside the scores."""
    present = set(found.labels.tolist())
    missing = [name for label, name in enumerate(found.classes) if label not in present]
    said = [f"no held-out image of {', '.join(missing[:10])}{' and others' if len(missing) > 10 else ''}: nothing is known of "
            f"{'these' if len(missing) > 1 else 'this class'}"] if missing else []
    low, high = TEMPERATURES
    if found.right.all() or not 1.01 * low < found.temperature < 0.99 * high:
        said.append(f"the temperature ({found.temperature:.3g}, searched from {low} to {high}) is not determined by these images")
    return said
