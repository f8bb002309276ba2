"""Text encoders of transformers from where users have them: a name on the hub, or a local folder, which needs no network.

Nothing is executed on the way: weights are safetensors, or torch files of tensors alone.
"""

import contextlib
import importlib.util
import json
from pathlib import Path

import torch

from libs import files

HINT = "give a local folder or a hub name that this machine can reach"
DTYPES = {"": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_OPENCLIP = "open_clip_config.json"
_OPENCLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TEXT_TOWER = "text.transformer."


def load(path: str, *, architecture: str = "AutoModel", subfolder: str = "", dtype: str = ""):
    """(network, tokenizer) with every weight loaded, but for a pooler, which token states do not need.

    Args:
        path: a local folder or a name on the hub. `AutoModel` also takes the text tower of an open_clip repository whose
            text encoder is one of transformers, such as BiomedCLIP's.
        architecture: class of transformers.
        subfolder: where in it the network lies. Of 'text_encoder' in a diffusers pipeline the tokenizer is in 'tokenizer'.
        dtype: '' (float32), 'float32', 'bfloat16', 'float16'.

    Raises:
        OSError: nothing was found at `path`. ValueError: what is there cannot be used; says why.
    """
    import transformers
    if dtype not in DTYPES:
        raise ValueError(f"encoder.dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
    where, local = place(path)
    options = {"local_files_only": local, "trust_remote_code": False}
    with _reading(path), _quiet():
        if architecture == "AutoModel" and _is_openclip(path, subfolder):
            net, lacking = _text_tower(path, subfolder)
            net.to(DTYPES[dtype])
        else:
            net, found = getattr(transformers, architecture).from_pretrained(
                where, subfolder=subfolder, dtype=DTYPES[dtype], output_loading_info=True, **options)
            lacking = found["missing_keys"]
    lacking = sorted(name for name in lacking if not name.startswith("pooler."))
    if lacking:
        raise ValueError(f"{path} lacks weights of its {type(net).__name__}: {', '.join(lacking[:5])}"
                         f"{f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''}")
    tokenizer = load_tokenizer(path, subfolder.replace("text_encoder", "tokenizer"))
    known = getattr(net.config, "vocab_size", len(tokenizer))
    if len(tokenizer) > known:
        raise ValueError(f"{path}: its tokenizer knows {len(tokenizer)} tokens, but its network {known}: they do not belong "
                         "together")
    return net, tokenizer


def load_tokenizer(path: str, subfolder: str = ""):
    """The tokenizer of a text encoder; arguments and errors as for `load`."""
    import transformers
    where, local = place(path)
    _check_sentencepiece(path, subfolder)
    with _reading(path), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, subfolder=subfolder, local_files_only=local,
                                                               trust_remote_code=False)
    # Without its files transformers makes a tokenizer that knows only special tokens, and says nothing.
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 2:
        raise ValueError(f"{path} holds no tokenizer{f' in {subfolder}/' if subfolder else ''}: put its files there "
                         "(tokenizer.json, or vocab.txt and the like)")
    if tokenizer.pad_token is None:
        raise ValueError(f"{path}: its tokenizer has no padding token; use a text encoder such as those of BERT's family")
    return tokenizer


def read_json(path: str, name: str, subfolder: str = "", default=None):
    """The content of a JSON file of a folder or repository; `default` where it has none. Raises as `load` does."""
    with _reading(path):
        file = _file(path, name, subfolder)
        return json.loads(Path(file).read_text(encoding="utf-8")) if file else default


def place(path: str) -> tuple[str, bool]:
    """(where to load from, whether that is a local folder); FileNotFoundError for a path without a folder."""
    if not path:
        raise ValueError(f"encoder.path is missing: {HINT}")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), True
    if path.startswith((".", "/", "~")) or path.count("/") > 1:  # a name on the hub is `name` or `owner/name`
        raise FileNotFoundError(f"no folder {path}: {HINT}")
    return path, False


def _file(path, name, subfolder=""):
    """A file of a folder or repository as a local path, None where it has none."""
    where, local = place(path)
    if local:
        file = Path(where) / subfolder / name
        return file if file.is_file() else None
    from huggingface_hub import errors, hf_hub_download
    try:
        return hf_hub_download(where, name, subfolder=subfolder or None)
    except errors.LocalEntryNotFoundError:  # not in the cache, and the hub is out of reach
        raise
    except errors.EntryNotFoundError:
        return None


def _check_sentencepiece(path, subfolder):
    """Raise ValueError where a tokenizer needs a package that is not here. Published T5 tokenizers, PixArt's too, are spiece.model
    alone, of whose lack transformers only says that it is no file of tiktoken."""
    lacking = [name for name, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
               if not _installed(module)]
    with _reading(path):
        if lacking and _file(path, "spiece.model", subfolder) and not _file(path, "tokenizer.json", subfolder):
            raise ValueError(f"its tokenizer is a file of sentencepiece, spiece.model: pip install {' '.join(lacking)}")


def _installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # no parent package; taken out of sys.modules
        return False


def _is_openclip(path, subfolder):
    """Whether there is a network of open_clip and none of transformers."""
    return bool(_file(path, _OPENCLIP, subfolder)) and not any(_file(path, name, subfolder) for name in _WEIGHTS)


def _text_tower(path, subfolder):
    """The text encoder of an open_clip repository without its projection, and the names of the weights it lacks."""
    import transformers
    settings = read_json(path, _OPENCLIP, subfolder)["model_cfg"]["text_cfg"]
    name = settings.get("hf_model_name")
    if not name:
        raise ValueError("the text encoder of this open_clip network is none of transformers; encoder.name=clip takes the "
                         "networks of CLIP's own kind")
    config = _openclip_config(path, subfolder, name)
    file = next(filter(None, (_file(path, each, subfolder) for each in _OPENCLIP_WEIGHTS)), None)
    if not file:
        raise OSError(f"neither {' nor '.join(_OPENCLIP_WEIGHTS)} is there")
    net = transformers.AutoModel.from_config(config, dtype=torch.float32)
    return net, net.load_state_dict(_tower_weights(file), strict=False).missing_keys


def _openclip_config(path, subfolder, name):
    """How a text tower is built: its own config.json, else that of network `name`, which a local folder asks no hub for."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig
    own = _file(path, "config.json", subfolder)
    if own:
        return AutoConfig.from_pretrained(Path(own).parent, local_files_only=True, trust_remote_code=False)
    if not place(path)[1]:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    cached = try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        raise OSError(f"config.json is missing, which says how its text encoder is built: put that of {name} there")
    return AutoConfig.from_pretrained(Path(cached).parent, local_files_only=True, trust_remote_code=False)


def _tower_weights(file):
    """The text encoder's tensors of a network of open_clip, or of a checkpoint of its training."""
    if str(file).endswith(".safetensors"):
        weights = files.read_safetensors(file)
    else:
        weights = files.read_torch(file)
        weights = weights.get("state_dict", weights)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return {name.removeprefix(_TEXT_TOWER): value for name, value in weights.items() if name.startswith(_TEXT_TOWER)}


@contextlib.contextmanager
def _quiet():
    """Without transformers' reports of weights that are left over or new: what matters of them is checked here."""
    from transformers import logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _folders(path):
    """A local folder and those right below it, in which weights may lie; none for a name on the hub."""
    folder = Path(path).expanduser()
    return [folder, *sorted(each for each in folder.iterdir() if each.is_dir())] if folder.is_dir() else []


@contextlib.contextmanager
def _reading(path):
    """Errors on the way name the path and say what to do."""
    try:
        yield
    except Exception as error:
        if HINT in str(error):  # said already
            raise
        damaged = next(filter(None, map(files.describe_damaged, _folders(path))), "")
        reason = damaged or (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")[:300]
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"no text encoder could be loaded from {path} ({reason}): {HINT}") from error
