"""What a user asks of sample.py: which images, of what, under which names.

`RequestOptions` are the words of the command line, checked as far as they can be without a network; `compose` makes of them a
`Request`, which knows for every image its conditions, its file and all that tells it from another one.
"""

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from libs import data, engine, pipeline
from libs.data.base import fail
from libs.engine.file_names import distinct_names, short_name
from libs.evaluation import masks as masks_of
from libs.evaluation.filtering import Rejection, prompts_of
from libs.evaluation.identity import facts_of
from libs.evaluation.masks import AskedMasks
from libs.evaluation.weights import weights_options

LAYOUTS = ("flat", "classes")
OURS = ("grid.png", "comparison.png", "metadata.csv", "acceptance.json")  # files beside the images
REJECTED = "rejected"  # folder of what a filter rejects, beside the images


class RequestOptions:
    """The options of sample.py that say what is asked for; `prompts` are those of --prompt or --input_path.

    Raises:
        ValueError: an option out of range, two that exclude each other, or no prompts to be read.
    """

    def __init__(self, *, label, prompt, input_path, mask_path, counts, n_samples, layout):
        self.label, self.prompt, self.input_path, self.mask_path, self.counts = label, prompt, input_path, mask_path, counts
        self.n_samples, self.layout = n_samples or (1 if mask_path else 16), layout
        self.prompts = [(prompt, label)] if prompt else pipeline.read_prompts(input_path) if input_path else []
        self.modalities = {} if prompt else pipeline.read_modalities(input_path)
        if layout not in LAYOUTS:
            raise ValueError(f"--layout={layout}: known are {', '.join(LAYOUTS)}")
        if n_samples < 0:
            raise ValueError(f"--n_samples={n_samples}: at least 1 image is needed")
        if counts and (self.prompts or label):
            raise ValueError("--counts stands for --label and --n_samples, without prompts: give one or the other")
        if mask_path and (counts or self.prompts):
            raise ValueError(f"--mask_path goes with --label and --n_samples, not with {'--counts' if counts else 'prompts'}: give "
                             "one or the other")


@dataclass
class Request:
    """Images to make, in order; image i is made under row i of `cond`.

    labels: number of each image's class. texts: its description, [] where it has none or it is known as states only.
    cond: the conditions, a row for each image. names: its file below `folder`. masks: `AskedMasks` or None.
    known: what decides the pixels of all of them, weights and sampler among it. rejection: `filtering.Rejection` or None.
    """

    labels: list
    texts: list
    cond: dict
    names: list
    folder: Path
    known: dict
    classes: list  # [] where the network takes no label
    masks: AskedMasks | None = None
    rejection: Rejection | None = None
    modalities: dict = field(default_factory=dict)  # of the texts that were given one

    @property
    def prompts(self):
        """What a filter reads beside each image; () without one."""
        return prompts_of(self.cond, len(self), self.classes) if self.rejection else ()

    def __len__(self):
        return len(self.labels)

    def facts(self, index):
        """All that tells image `index` from another one, as {name: value}; its PNG holds this, and the table."""
        label = self.classes[self.labels[index]] if self.classes else ""
        text = self.texts[index] if self.texts else ""
        modality = {"modality": self.modalities.get(text, "")} if self.modalities else {}
        return {"prompt": text, "label": label, **modality, "index": index,
                **(self.masks.facts(index) if self.masks else {}), **self.known}


def compose(run, config, workdir, trained, options, *, seed, rejection=None):
    """The `Request` of these options to a network; called by every process.

    Args:
        trained: `Trained`.
        options: `RequestOptions`.
        seed: of the images, and of the descriptions and masks that are drawn for them.
        rejection: `filtering.Rejection`, where a filter decides which images are taken.
    Raises:
        ValueError: the network takes no such thing as is asked for, or knows no such class; faults of masks.
    """
    sampler, classes = trained.sampler, trained.classes
    labelled = "label" in sampler.null
    _check(options, sampler, labelled)
    texts, of_mask = [], None
    if options.mask_path:
        files = masks_of.find_masks(options.mask_path, classes, config.dataset)
        of_mask, labels = each_mask(files, options.label, classes, options.n_samples, labelled=labelled)
    elif options.counts:
        labels = pipeline.count_labels(options.counts, classes)
    else:
        labels, texts = pipeline.requested(options.prompts, options.label, classes, options.n_samples, labelled=labelled,
                                           bank=getattr(trained.prompts, "bank", None))
    shown = class_names(classes)
    kinds = [shown[classes[label]] if labelled else "" for label in labels]
    names = _names(kinds, options.layout) if of_mask is None else []
    masks = None
    if of_mask is not None:
        code = sampler.masks_as or _code(config.dataset, sampler.net)
        masks = masks_of.of_files(options.mask_path, files, of_mask, code, side=sampler.image_shape[-1],
                                  crop=config.dataset.get("crop", ""))
        names = _names_of_masks([masks.names[number] for number in of_mask], kinds, options.layout)
    elif "mask" in sampler.takes:
        masks = masks_of.of_training_images(config.dataset, labels if labelled else None, classes, seed=seed, names=names,
                                            side=sampler.image_shape[-1], code=sampler.masks_as)
    folders = {kind.casefold() for kind in kinds} if options.layout == "classes" else set()
    if masks is not None and masks_of.FOLDER in folders:
        raise ValueError(f"--layout=classes: the folder {masks_of.FOLDER} holds the masks, and a class has that name; choose flat")
    if rejection and REJECTED in folders:
        raise ValueError(f"--layout=classes: the folder {REJECTED} is for what the filter rejects, and a class has that name; "
                         "choose flat")
    cond = {"label": torch.tensor(labels)} if labelled else {}
    if masks is not None:
        cond["mask"] = masks
    if texts:
        cond["text"] = pipeline.Prompts(trained.encoder, texts)
        if run.is_main and trained.encoder.cut(sorted(set(texts))):
            logging.warning(trained.encoder.cut(sorted(set(texts))))
    elif "text" in sampler.null:
        cond["text"] = pipeline.described(trained.prompts).draw(cond.get("label"), len(labels), seed=seed)
        texts = cond["text"].texts
    known = {"seed": seed, "nnet": trained.source, "step": trained.step,
             "sha256": engine.weights_hash(trained.source, **weights_options(config.sample)),
             **facts_of(trained.identity),
             "sampler": sampler.describe(), "steps": sampler.steps, "guidance": sampler.guidance,
             "precision": run.accelerator.mixed_precision, **(rejection.known if rejection else {})}
    if sampler.guides:
        known["classifier"] = engine.weights_hash(sampler.classifier.source)
    folder = _folder(config, workdir, options, sampler, seed, rejection)
    _keep_apart(folder, options.mask_path)
    return Request(labels, texts, cond, names, folder, known, classes if labelled else [], masks, rejection,
                   options.modalities)


def class_names(classes):
    """{class name: its name as a folder or a part of a file name}; what else lies beside the images is called
    otherwise."""
    return distinct_names(classes, reserved=OURS)


def each_mask(files, label, classes, n, *, labelled):
    """(number of the mask, number of the class) of each image: n of each mask, and with label 'all' n of each class.

    label '' takes the class that the table or the folder says, and where none does the classes in turn.

    Raises:
        ValueError: no such class.
    """
    if not labelled or label:
        kinds = pipeline.choose_labels(label, classes, n, conditional=labelled)
        return [number for number in range(len(files)) for _ in kinds], kinds * len(files)
    fail("the labels of the masks", [f"{each.name}: label {each.label!r} is no class of the network; known: {', '.join(classes)}; "
                                     "--label=NAME or all does without" for each in files
                                     if each.label and each.label not in classes])
    labels = []
    for each in files:
        labels += [classes.index(each.label) if each.label else (len(labels) + i) % len(classes) for i in range(n)]
    return [number for number in range(len(files)) for _ in range(n)], labels


def _check(options, sampler, labelled):
    """ValueError where the network takes no such thing as is asked for."""
    if options.prompts and "text" not in sampler.null:
        raise ValueError(f"{'--prompt' if options.prompt else '--input_path'}: this network takes no text, only --label")
    if not labelled and (options.counts or options.layout == "classes"):
        raise ValueError(f"{'--counts' if options.counts else '--layout=classes'}: this network makes no classes")
    if options.mask_path and "mask" not in sampler.takes:
        raise ValueError(f"--mask_path: this network takes no mask, but {', '.join(sampler.takes) or 'nothing'}; a ControlNet does "
                         "(train_controlnet.py)")


def _names(kinds, layout):
    """File names of images of these classes: numbered, below a folder of each class or with its name."""
    return [f"{kind}/{index:06d}.png" if layout == "classes" else f"{index:06d}_{kind}".rstrip("_") + ".png"
            for index, kind in enumerate(kinds)]


def _names_of_masks(stems, kinds, layout):
    """File names of images called after their masks, numbered where several are made of a mask and a class."""
    seen, number = {}, []
    for key in zip(stems, kinds):
        number.append(seen.get(key, 0))
        seen[key] = number[-1] + 1
    width = len(str(max(number)))
    tails = [f"_{each:0{width}d}" if max(number) else "" for each in number]
    if layout == "classes":
        return [f"{kind}/{short_name(f'{stem}{tail}')}.png" for stem, kind, tail in zip(stems, kinds, tails)]
    names = [short_name(f"{stem}_{kind}".rstrip("_") + tail) for stem, kind, tail in zip(stems, kinds, tails)]
    return [f"{name}.png" for name in masks_of.distinct(names, names)]


def _folder(config, workdir, options, sampler, seed, rejection):
    """Each request has a folder of its own, so that one does not overwrite the other."""
    guided = f"{pipeline.measure_name(config.sample.gradient.measure)}{config.sample.gradient.scale:g}" if sampler.guides else ""
    path = Path(options.mask_path).expanduser().resolve() if options.mask_path else None
    masks, where = (f"{path.parent.name} {path.stem} {options.label}", hashlib.sha256(str(path).encode()).hexdigest()[:6]
                    ) if path else ("", "")  # several folders of a data set are called masks
    words = re.sub(r"\W+", "_", options.prompt or Path(options.input_path).stem or options.counts or masks or options.label)
    words = ["images", words[:60].strip("_"), where, guided, rejection.words if rejection else "", f"seed{seed}"]
    return Path(config.sample.path or Path(workdir) / "_".join(filter(None, words)))


def _keep_apart(folder, mask_path):
    """ValueError where images would be written among the masks: they, or copies, would be taken for masks the next time."""
    ours, theirs = folder.resolve(), Path(mask_path).expanduser().resolve()
    if mask_path and (theirs.is_relative_to(ours) or theirs.is_dir() and ours.is_relative_to(theirs)):
        raise ValueError(f"--mask_path={mask_path} and the folder of the images, {folder}, lie in each other; choose another "
                         "--config.sample.path")


def _code(options, net):
    """The MaskCode of config.dataset, for weights whose run is not known."""
    given = {key: options[f"mask_{key}"] for key in ("values", "max", "names") if f"mask_{key}" in options}
    code = data.MaskCode(**given)
    wanted = getattr(net, "mask_channels", code.channels)
    if code.channels != wanted:
        raise ValueError(f"this network takes masks of {wanted} channels, config.dataset.mask_values={code.values} means "
                         f"{code.channels}: give the values of its {wanted} classes, or the --workdir of its run (masks.json)")
    return code
