"""What a bridge is asked to make: which class of images goes where, and what each result is called."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from libs import data
from libs.data.base import did_you_mean
from libs.engine.file_names import FILE_NAME_BYTES, distinct_names, safe_name, short_name

# Files beside the folders of the classes.
OURS = ("settings.json", "metadata.csv", "bridge.json", "shown.npz", "index.html")
EVERY = ("all", "*")  # in a map: every class; on unlabelled images: no class


class Job(NamedTuple):
    """One image to make: image `index` of the data set, called `file` there, from class `source` to class `target`, as
    the file `name` below the output folder."""

    index: int
    file: str
    source: str
    target: str
    name: str


def routes(maps, *, images, encoder, decoder, without_class=True):
    """Where each class goes: {class name of the images: [(class to encode as, class to decode to)]}.

    Args:
        maps: 'nevus:melanoma,angioma:angioma'; a class may have several targets, 'all' or '*' stands for every class, and
            classes that are not named are left out. '' sends each class onto itself.
        images: class names of the images; [] where they are unlabelled: then maps name one class that all of them are
            encoded as, or '*' for no class, and the only key of the result is ''.
        encoder, decoder: class names of the two networks; [] for one that takes no label.
        without_class: whether the network that encodes was trained on images of no class too.
    Returns:
        names; '' where a network takes no label or none is known.
    Raises:
        ValueError: a name that nobody knows, or a map that is missing or cannot be.
    """
    pairs = [tuple(part.strip() for part in entry.split(":")) for entry in maps.split(",") if entry.strip()]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"--maps: {':'.join(pair)!r} is no pair source:target, such as nevus:melanoma")
    if pairs and not decoder:
        raise ValueError(f"--maps={maps}: the network that decodes takes no label, so there is no class to go to")
    for source, target in pairs:
        known = images or encoder
        if source not in (*known, *EVERY):
            raise ValueError(f"--maps: {source}:{target}: no class {source!r} among {list(known)}"
                             f"{did_you_mean(source, known)}")
        if target not in decoder:
            raise ValueError(f"--maps: {source}:{target}: the network makes no class {target!r}, only {list(decoder)}"
                             f"{did_you_mean(target, decoder)}")
    if not images:
        return {"": _routes_of_unlabelled(pairs, encoder, decoder, without_class)}
    found = {}
    for name in images:
        named = [target for source, target in pairs if source == name or source in EVERY and source not in images]
        if not pairs:
            named = [name if decoder else ""]
        elif not named:
            continue
        if encoder and name not in encoder:
            raise ValueError(f"the images have a class {name!r} that the network does not know: {list(encoder)}"
                             f"{did_you_mean(name, encoder)}; name the classes to take by --maps")
        if not pairs and decoder and name not in decoder:
            raise ValueError(f"the network that decodes makes no class {name!r}, only {list(decoder)}"
                             f"{did_you_mean(name, decoder)}; say by --maps where it goes")
        found[name] = [(name if encoder else "", target) for target in dict.fromkeys(named)]
    return found


def _routes_of_unlabelled(pairs, encoder, decoder, without_class):
    if not pairs and not encoder and not decoder:
        return [("", "")]
    if not decoder:
        raise ValueError("the images have no labels, and the network that encodes takes one: put them into a folder of the name of "
                         f"their class, one of {list(encoder)}")
    if not pairs:
        raise ValueError("the images have no labels, and the network takes one: name the class that they are of and the one to go "
                         f"to, --maps=source:target ('*' for a source of no class); known: {', '.join(encoder or decoder)}")
    if len({source for source, _ in pairs}) > 1:
        raise ValueError("--maps names several sources, and the images have no labels to tell them apart by: name one")
    source = "" if pairs[0][0] in EVERY and pairs[0][0] not in encoder else pairs[0][0]
    if not source and encoder and not without_class:
        raise ValueError(f"--maps={pairs[0][0]}:{pairs[0][1]}: the network was not trained on images of no class "
                         f"(config.train.p_uncond=0), so it cannot encode them; name their class, one of {list(encoder)}")
    return [(source, target) for target in dict.fromkeys(target for _, target in pairs)]


def plan(dataset, found, prefix):
    """All `Job`s of a data set under the `routes` found, in its order.

    A result is called <target>/<prefix>_<stem of the source>.png; where several images of the data set have the same
    stem, its whole path takes the stem's place, with '_' between folders. Whatever else is asked for, a source has the
    same name.
    """
    stems, jobs = _stems([dataset.file_name(i) for i in range(len(dataset))]), []
    targets = sorted({target or label for label, pairs in found.items() for _, target in pairs} - {""})
    folders = distinct_names([*dataset.classes, *targets], reserved=OURS)
    for i, stem in enumerate(stems):
        label = dataset.classes[int(dataset.labels[i])] if dataset.classes else ""
        for source, target in found.get(label, ()):
            target = target or label
            folder = f"{folders[target]}/" if target else ""
            name = f"{folder}{short_name(f'{prefix}_{stem}')}.png"
            jobs.append(Job(i, dataset.file_name(i), source or label, target, name))
    for name, count in Counter(job.name.lower() for job in jobs).items():
        if count > 1:
            raise ValueError(f"{count} results would be called {name}: {[job.file for job in jobs if job.name.lower() == name]}")
    return jobs


def some(jobs, n):
    """The jobs of n sources, always the same ones and a part of those of any larger n; all where n is 0."""
    if n < 0:
        raise ValueError(f"--n_samples={n}: give how many images to take, 0 for all")
    sources = list(dict.fromkeys(job.index for job in jobs))
    chosen = {sources[k] for k in data.some(sources, n or len(sources))}
    return [job for job in jobs if job.index in chosen]


def _stems(files):
    """A name for each of the files: its stem, or its whole path where others have the same stem."""
    stems = [_as_name(Path(file).stem) for file in files]
    twice = {stem for stem, count in Counter(stem.lower() for stem in stems).items() if count > 1}
    names = [_as_name(os.path.splitext(file)[0]) if stem.lower() in twice else stem for file, stem in zip(files, stems)]
    twice = {name for name, count in Counter(name.lower() for name in names).items() if count > 1}
    return [_as_name(file) + f"_{k}" if name.lower() in twice else name for k, (file, name) in enumerate(zip(files, names))]


def _as_name(text):
    """Text as the name of a file."""
    return safe_name(re.sub(r"[^\w .,()+=@-]+", "_", text).strip(" ._") or "_", FILE_NAME_BYTES)
