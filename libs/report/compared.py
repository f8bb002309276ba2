"""A run as a comparison sees it: what it is, how long it trained, and which of its evaluations counts."""

import math
import re
import shlex
from pathlib import Path

import numpy as np

from libs import report
from libs.report.evaluations import rank, specialities
from libs.report.yardsticks import marks

SIZES = ("model", "embed_dim", "hidden_size", "model_channels", "block_out_channels", "depth", "patch_size")
NO_GENERATORS = ("adm_classifier",)


class Run:
    """A run folder of any family.

    Attributes:
        name: what the page calls it; workdir: as it was given.
        config, classes, sessions, records: of config.json, classes.json, run.json and metrics.jsonl; empty where absent.
        trained_on: fingerprint of the images that pre-flight found good; '' where it is not known.
        evaluations: [content of scores.json, with 'folder' (its name), 'path', 'made' (a time) and 'special' (what sets it apart,
            see `evaluations.specialities`)], oldest first.
        evaluation: the one of them that is compared, None without; see `choose`.
    """

    def __init__(self, workdir, name, warnings):
        """ValueError where `workdir` is no run of a generative model; faults in single files become `warnings`."""
        self.name, self.workdir, self.evaluation = name, Path(workdir), None
        if not self.workdir.is_dir():
            raise ValueError(f"{workdir} is no folder: give run folders, the --workdir of trainings")
        self.config = report.read_json(self.workdir / "config.json", dict, warnings)
        network = self.section("nnet").get("name")
        if not network or network in NO_GENERATORS:
            raise ValueError(f"{workdir} is no run of a generative model: " + (
                f"its network is {network!r}" if network else "it has no config.json that names a network"))
        self.classes = [str(each) for each in report.read_json(self.workdir / "classes.json", list, warnings)]
        self.sessions = report.sessions(self.workdir / "run.json", [])
        self.trained_on = report.read_json(self.workdir / "preflight.json", dict, []).get("good") or ""
        self.records = report.read_metrics(self.workdir / "metrics.jsonl", warnings)
        found = [evaluation(path, warnings) for path in sorted(self.workdir.glob("eval/*/scores.json"))]
        found = [each | {"special": specialities(each, self.config)} for each in found if each]
        self.evaluations = sorted(found, key=lambda each: each["made"])

    def section(self, name):
        """A section of the config as a dict, empty where there is none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def step(self):
        """The last training step that the log knows."""
        return max((max(rows) for rows in self.records.values()), default=0)

    @property
    def batch(self):
        return self.section("train").get("batch_size") or 0

    def seconds_at(self, step):
        """Seconds spent in training steps until `step`: from one line of the log to the next, images over images per second.

        The engine stops this clock while it evaluates, saves and draws previews. Steps that a kill has undone are dropped from
        the log when the run resumes, and so count once.
        """
        lines = self.records.get("train", {})
        rates = np.array([row.get("images_per_second", math.inf) for row in lines.values()])
        steps = np.array([0, *lines])
        spent = np.divide(np.diff(steps) * self.batch, rates, out=np.zeros(len(rates)), where=rates > 0)
        return float(np.interp(step, steps, np.cumsum([0, *spent])))

    @property
    def batch_sizes(self):
        """Batch sizes that the commands of its sessions name: more than one where a session went on with another."""
        commands = [str(each.get("command", "")) for each in self.sessions]
        return {int(size) for command in commands for size in re.findall(r"--config\.train\.batch_size=(\d+)", command)}

    def command(self, n=None, seed=None, name=""):
        """The command that evaluates this run, with as many images from the same seed as the others."""
        words = shlex.split(str(self.sessions[-1].get("command", ""))) if self.sessions else []
        script = next((Path(word).name for word in words if re.fullmatch(r"train\w*\.py", Path(word).name)), "train.py")
        options = [f"--workdir={self.workdir}"]
        options += [f"--config.sample.n_samples={n}"] if n is not None else []
        options += [f"--seed={seed}"] if seed not in (None, 1) else []  # 1 is what evaluations begin with
        options += [f"--name={name}"] if name else []
        return shlex.join(["python", "eval" + script.removeprefix("train"), *options])

    def facts(self):
        """What it is and what it took, as {fact: number or text}; None where it is not recorded."""
        train, net = self.section("train"), self.section("nnet")
        sizes = [f"{key} {net[key]}" for key in SIZES if net.get(key)]
        last = self.sessions[-1] if self.sessions else {}
        seconds, images = self.seconds_at(self.step), self.step * self.batch
        found = self.evaluation or {}
        sampling, text = found.get("sampling") or {}, str(found.get("sampler") or "")
        steps, guidance = (re.search(pattern, text) for pattern in (r"(\d+) steps", r"guidance (\d+(?:\.\d+)?)"))
        operations, calls = found.get("operations"), sampling.get("evaluations_per_image")
        at = found.get("step")
        return {
            "network": net["name"], "sizes": ", ".join(sizes), "predicts": self.section("denoiser").get("predicts"),
            "schedule": self.section("schedule").get("name"), "codec": self.section("codec").get("name"),
            **self.parameters(), "operations": operations,
            "steps": self.step, "steps_asked": train.get("n_steps"), "batch_size": self.batch, "images_seen": images,
            "training_seconds": seconds or None, "images_per_second": images / seconds if seconds else None,
            "training_device": last.get("device"), "training_processes": last.get("processes"),
            "training_precision": last.get("precision"), "sessions": len(self.sessions),
            "evaluation": found.get("folder"), "n": found.get("n"), "seed": found.get("seed"), "step_evaluated": at,
            "seconds_to_evaluated": self.seconds_at(at) if at is not None and seconds else None,
            "chosen_by": train.get("best_metric") or "the last step", "weights": found.get("nnet"),
            "sampler": text or None, "sample_steps": sampling.get("steps") or (steps and int(steps[1])),
            "guidance": sampling.get("guidance") or (float(guidance[1]) if guidance else 1.0 if text else None),
            "evaluations_per_image": calls, "operations_per_image": operations * calls if operations and calls else None,
            "seconds_per_image": sampling.get("seconds_per_image"), "sampling_batch": sampling.get("batch"),
            "sampling_device": sampling.get("device"), "sampling_processes": sampling.get("processes"),
            "sampling_precision": sampling.get("precision")}

    def parameters(self):
        """{'parameters', 'trainable', 'codec_parameters'}: of parameters.json, or else of the evaluation."""
        found = report.read_json(self.workdir / "parameters.json", dict, []) or (self.evaluation or {}).get("parameters") or {}
        try:
            own = {key: sum(part[key] for name, part in found.items() if name not in ("all", "codec", "encoder"))
                   for key in ("total", "trainable")}
            codec = found.get("codec", {}).get("total")
        except (KeyError, TypeError, AttributeError):
            own, codec = {}, None
        return {"parameters": own.get("total") or None, "trainable": own.get("trainable") or None, "codec_parameters": codec}


def evaluation(path, warnings):
    """The content of a scores.json of generated images, with its numbers checked; None where it is none."""
    found = report.read_json(path, dict, warnings)
    if not found or found.get("levels"):  # of a classifier of noisy images
        return None
    if type(found.get("n")) is not int or not isinstance(found.get("scores"), dict):
        warnings.append(f"{'/'.join(path.parts[-4:])} holds no scores of generated images")
        return None
    per_class = found.get("per_class") if isinstance(found.get("per_class"), dict) else {}
    parts = {key: found[key] if isinstance(found.get(key), dict) else {} for key in ("judges", "real", "sampling", "parameters")}
    parts["judges"] = {name: each for name, each in parts["judges"].items() if isinstance(each, dict)}
    parts["sampling"] = {name: each for name, each in parts["sampling"].items() if finite(each) or isinstance(each, str)}
    return {**found, **parts, "scores": numbers(found["scores"], found["n"]), "folder": path.parent.name, "path": path.parent,
            "per_class": {name: numbers(row, found["n"]) for name, row in per_class.items() if isinstance(row, dict)},
            "operations": found["operations"] if finite(found.get("operations")) else None,
            "step": found["step"] if type(found.get("step")) is int else None, "made": path.stat().st_mtime}


def numbers(scores, n):
    """The scores that are finite numbers; intervals are both ends or None."""
    found = {}
    for name, entry in scores.items():
        value, low, high = (entry.get(key) if isinstance(entry, dict) else None for key in ("value", "low", "high"))
        if finite(value):
            ends = {"low": low, "high": high} if finite(low) and finite(high) else {"low": None, "high": None}
            found[name] = {**entry, **ends, "n": entry.get("n") if type(entry.get("n")) is int else n}
    return found


def finite(value):
    return type(value) in (int, float) and math.isfinite(value)


def choose(runs, name=""):
    """Set `evaluation` of each run: that in eval/<name>, or else the main one (`evaluations.rank`) that all evaluated runs share.

    Sought are first the same number of images, seed, prompts, yardsticks and special conditions, then the same number, seed and
    conditions, then the same number and conditions, then the same number; of several that are shared an ordinary one with the
    most images. Where nothing is shared it is the main one of each. Runs without an evaluation do not hinder the others.
    """
    if name:
        for run in runs:
            run.evaluation = next((each for each in run.evaluations if each["folder"] == name), None)
        return

    def place(each):
        return rank(each, each["special"], each["made"])

    for likeness in (lambda each: (each["n"], each.get("seed"), each.get("prompts"), marks(each), *each["special"]),
                     lambda each: (each["n"], each.get("seed"), *each["special"]), lambda each: (each["n"], *each["special"]),
                     lambda each: each["n"], lambda each: None):
        best = {run: {likeness(each): each for each in sorted(run.evaluations, key=place)} for run in runs if run.evaluations}
        shared = set.intersection(*map(set, best.values())) if best else set()
        if shared:
            alike = max(shared, key=lambda each: min(place(found[each]) for found in best.values()))
            for run, found in best.items():
                run.evaluation = found[alike]
            return
