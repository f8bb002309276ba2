"""Networks of diffusers and transformers from where users have them: the hub, a save_pretrained folder; and folders written whole.

Nothing is executed on the way: weights are safetensors, or torch files of tensors alone.
"""

import contextlib
import importlib
import json
import os
import shutil
import uuid
from pathlib import Path

from libs import files

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def load(kind: str, path: str, subfolder: str = "", *, what: str, likely=(), advice: str = "", other=None, also=(),
         library: str = "diffusers", dtype=None):
    """A network of class `kind` of a library, with every weight loaded.

    Args:
        path: a folder that holds one written by save_pretrained, or a name on the hub.
        subfolder: where in the folder or repository it lies.
        what: what it is to a user, such as 'autoencoder'.
        likely: subfolders of a local folder to look into in place of `subfolder`, in this order; '' is the folder itself.
        advice: how to get one, the end of messages that say it is not there.
        other: {class name: what to use in its place} for networks of another kind.
        also: names of other classes whose folders `kind` reads.
        dtype: torch.bfloat16 or torch.float16, in which weights are then read, as the library does; float32 else.

    Raises:
        OSError: nothing was found; says where one can be had.
        ValueError: it is another kind of network, or some of its weights are missing.
    """
    where = folder_of(path, likely or (subfolder,), what=what)
    if where:
        _check_kind(where, kind, other or {}, also)
    elif looks_local(path):
        raise FileNotFoundError(f"no {what} at {path}: expected a folder written by save_pretrained{advice and f'; {advice}'}")
    lower = dtype is not None and str(dtype) != "torch.float32"
    try:
        net, found = getattr(importlib.import_module(library), kind).from_pretrained(
            where or path, output_loading_info=True, **({} if where or not subfolder else {"subfolder": subfolder}),
            **({"dtype": dtype} if lower else {}))
    except Exception as error:  # safetensors has a kind of its own
        if where:
            raise ValueError(f"{where} cannot be read as {_article(kind)} {kind}: {files.describe_damaged(where) or error}") from error
        raise not_on_hub(f"{kind} {path!r}{f' with subfolder {subfolder!r}' if subfolder else ''}", error, advice) from error
    lacking = sorted(found["missing_keys"]) + [str(each) for each in found["mismatched_keys"]]
    if lacking:
        raise ValueError(f"{where or path} lacks weights of its {kind}, or has them in another shape: "
                         f"{', '.join(lacking[:5])}{f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''}")
    return net if lower else net.float()


def read_json(path: str, name: str, subfolder: str = "", *, advice: str = ""):
    """The content of a JSON file of a local folder or of a repository on the hub, None where that has none.

    Raises:
        OSError: there is neither such a folder nor, in the hub's cache or on the hub, such a repository.
        ValueError: the file is no JSON.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        file = folder / subfolder / name
    elif looks_local(path):
        raise FileNotFoundError(f"no folder {path}{advice and f': {advice}'}")
    else:
        from huggingface_hub import errors, hf_hub_download
        try:
            file = Path(hf_hub_download(path, name, subfolder=subfolder or None))
        except errors.LocalEntryNotFoundError as error:  # not in the cache, and the hub is out of reach
            raise not_on_hub(repr(path), error, advice) from error
        except errors.EntryNotFoundError:
            return None
        except OSError as error:
            raise not_on_hub(repr(path), error, advice) from error
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def folder_of(path: str, likely, *, what: str) -> Path | None:
    """The first of the subfolders `likely` with a config.json; None where `path` is no local folder, FileNotFoundError where it
    holds none."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return None
    tried = [path / name for name in likely]
    for folder in tried:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"no {what} in {path}: expected config.json and its weights, as save_pretrained writes "
                            f"them, in {' or '.join(map(str, tried))}")


def looks_local(path: str) -> bool:
    """True for what can be no name on the hub, which is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(WEIGHT_FILES)


def not_on_hub(what: str, error: Exception, advice: str = "") -> OSError:
    """What to raise where a name on the hub leads nowhere."""
    reason = str(error).strip().split("\n")[0][:200]
    return OSError(f"no {what}: it is no folder here, and the hub (its cache, then the network) did not give it ({reason})"
                   f"{advice and f'. {advice[0].upper()}{advice[1:]}'}")


@contextlib.contextmanager
def written_whole(folder):
    """A staging folder to write into, which takes the place of `folder` at the end, and not at all after an error.

    Yields:
        Path of the empty staging folder, beside `folder`.

    Raises:
        OSError: the disk is full; names the folder.
    """
    folder = Path(folder)
    staged, doomed = (folder.with_name(f".{kind}-{folder.name}-{uuid.uuid4().hex[:8]}") for kind in ("staging", "old"))
    staged.mkdir(parents=True)
    try:
        with files.disk_errors(folder):
            yield staged
        if folder.exists():
            os.replace(folder, doomed)
        os.replace(staged, folder)
    finally:
        for leftover in (staged, doomed):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_kind(folder, kind, other, also=()):
    try:
        config = json.loads((folder / "config.json").read_text())
        named = config.get("_class_name") or next(iter(config.get("architectures") or ()), "no network of diffusers")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json cannot be read: {error}") from error
    if named != kind and named not in also:
        raise ValueError(f"{folder} holds {named}, not {kind}" + (f": {other[named]}" if named in other else ""))


def _article(kind):
    return "an" if kind[0] in "AEIO" else "a"
