"""What a store says of itself, and whether that is what is asked for."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..base import fail

FORMAT = 1
WEIGHTS = "weights"  # the array that changes without the data being others
_OPTIONS = {"codec": "config.codec", "encoder": "config.encoder", "data": "config.dataset", "dtype": "config.features.dtype",
            "flips": "config.dataset.random_flip"}


def partial(path):
    """The folder beside a store in which it is made."""
    return Path(f"{path}.partial")


def read(path):
    """The manifest of a finished store whose files all have their size.

    Raises:
        ValueError: there is none, it is unfinished, or a file is missing, truncated or not a manifest; says which.
    """
    path = Path(path)
    if not (path / "manifest.json").is_file():
        raise ValueError(_why_not(path))
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a feature store of format {FORMAT}: delete the folder and extract again")
    fail(f"{path}: damaged feature store; delete the folder and extract again",
         [f"{name}: {_size(path / name)}, expected {known['bytes']:,} bytes"
          for name, known in manifest["files"].items() if _size(path / name) != f"{known['bytes']:,} bytes"])
    return manifest


def check(path, identity, fingerprint, *, options=None):
    """Raise ValueError unless the store at `path` was made by this codec and encoder from these data.

    identity: {'codec': {...}, 'encoder': {...}} as given to `write`; fingerprint: of the images. What is '' on either
    side is unknown and not compared. options: the data set's, compared with those of then to say why data differ.
    """
    stored, why = read(path), []
    before = stored["data"]["fingerprint"]
    if "" not in (fingerprint, before) and fingerprint != before:
        why = _changed_options(stored["about"].get("dataset", {}), dict(options or {}))
    refuse(path, {**stored["identity"], "data": {"fingerprint": before}}, {**identity, "data": {"fingerprint": fingerprint}}, why)


def _changed_options(then, now):
    """Why the data are others than then, in words: the options that differ, or else the files themselves."""
    if not then or not now:
        return []
    now = json.loads(json.dumps(now, default=dict))  # a ConfigDict as it was written
    keys = sorted((then.keys() | now.keys()) - {"weight_column"})
    return [f"config.dataset.{key}: stored {then.get(key)!r}, now {now.get(key)!r}" for key in keys
            if then.get(key) != now.get(key)] or ["the files themselves: names, sizes, dates, classes or captions have changed"]


def verify(path):
    """Read every byte of a store: ValueError that lists the files whose sha256 is not that of the manifest."""
    path, files = Path(path), read(path)["files"]
    found = sha256_of([path / name for name in files])
    fail(f"{path}: damaged feature store; delete the folder and extract again",
         [f"{name}: the content has changed since it was written" for name, digest in zip(files, found, strict=True)
          if digest != files[name]["sha256"]])


def refuse(path, stored, now, why=()):
    """ValueError that names each entry in which two nested dicts differ, and `why`; '' on either side means unknown."""
    stored, now = _leaves(stored), _leaves(json.loads(json.dumps(now)))
    different = [key for key in sorted(stored.keys() | now.keys())
                 if stored.get(key) != now.get(key) and "" not in (stored.get(key), now.get(key))]
    options = sorted({_OPTIONS.get(key.split(".")[0], "the options") for key in different})
    fail(f"{path}: this feature store is of something else; delete the folder to have it made anew, choose another "
         f"config.features.path, or set {', '.join(options)} as it was then",
         [f"{key}: stored {_short(stored.get(key))}, now {_short(now.get(key))}" for key in different] + list(why))


def read_json(path):
    """The content of a JSON file; ValueError that names it where it is none."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def write_json(path, content):
    """Replace a JSON file in one step."""
    staging = path.with_name(f"{path.name}.new")
    with open(staging, "w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def sha256_of(paths):
    """Hex digests of files, four at a time."""
    def digest(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(digest, paths))


def _why_not(path):
    if (partial(path) / "plan.json").is_file():
        plan, missing = read_json(partial(path) / "plan.json"), []
        for group, count in plan["counts"].items():
            chunks = range(0, count, plan["chunk"])
            undone = sum(min(plan["chunk"], count - start) for start in chunks if not done(path, group, start).exists())
            missing.append(f"{undone} of {count} {group}")
        command = plan["about"].get("command") or "the extraction that began it (scripts/extract_feature.py)"
        return f"{path}: the feature store is unfinished, {' and '.join(missing)} are missing; to go on, run {command}"
    if path.is_dir() and any(path.iterdir()):
        return f"{path}: no feature store (it has no manifest.json); name the folder of one split, such as {path / 'train'}"
    return (f"{path}: no feature store there; make it with scripts/extract_feature.py, or of published features with "
            "scripts/convert_features.py")


def done(path, group, start):
    """The file whose presence means that a chunk of an unfinished store is on disk."""
    return partial(path) / "done" / f"{group}-{start}"


def _size(path):
    return f"{path.stat().st_size:,} bytes" if path.is_file() else "missing"


def _leaves(tree, path=""):
    if not isinstance(tree, dict):
        return {path: tree}
    return {name: leaf for key, branch in tree.items()
            for name, leaf in _leaves(branch, f"{path}.{key}" if path else key).items()}


def _short(value):
    return f"{value[:8]}.." if isinstance(value, str) and len(value) > 40 else "nothing" if value is None else repr(value)
