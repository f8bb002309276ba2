"""Strict loading of a checkpoint, and what to change when it does not fit; what tells frozen weights apart."""

import hashlib
import logging

import torch
from torch import Tensor, nn

SHOWN = 4
TEXT, INNER = "text_encoder.", "text_model."


def load(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Copy `state` into `net`, key by key and shape by shape, and return `net`.

    Raises one ValueError that lists the missing, the unexpected and the differently shaped keys, and the
    settings with which the network would fit where the shapes tell them. The network is then unchanged. The text encoder of
    a pipeline's folder is left out where the network has none.
    """
    own = net.state_dict()
    state = _with_own_text_encoder(own, state)
    later = getattr(net, "later_biases", ())
    if later and set(own) - set(state) == set(later):
        logging.warning("the checkpoint is of a time when %s was without biases: they are taken as 0, which it computed with", later[0])
        state = {**state, **{name: torch.zeros_like(own[name]) for name in later}}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [f"{key}: checkpoint {tuple(state[key].shape)}, network {tuple(own[key].shape)}"
                for key in own if key in state and state[key].shape != own[key].shape]
    if missing or unexpected or reshaped:
        problems = [_listed(missing, "missing from the checkpoint"),
                    _listed(unexpected, "unknown to the network"),
                    _listed(reshaped, "of another shape"), *_advice(net, own, state)]
        raise ValueError(f"the checkpoint does not fit the network {type(net).__name__}:\n  "
                         + "\n  ".join(filter(None, problems)))
    net.load_state_dict(state, strict=True)
    return net


def adaptations(net: nn.Module, state: dict[str, Tensor]) -> dict[str, tuple]:
    """What stands between a network and the weights of another task that it could begin with.

    Returns {setting: (value in `state`, value of `net`, prefix of the weights that depend on it)} by the network's `adaptable`; {}
    where nothing does, where more does than can be left out, or where the shapes do not tell.
    """
    known, differing = getattr(net, "adaptable", {}), _differing(net, net.state_dict(), state)
    if not differing.keys() <= set(known):
        return {}
    return {key: (*differing[key], prefix) for key, prefix in known.items() if key in differing}


def init_without(prefixes) -> str:
    """The option that leaves out weights whose names begin so, as the command line takes it."""
    prefixes = tuple(dict.fromkeys(prefixes))
    return f'--config.train.init_without="{prefixes}"'


def frozen_hash(net: nn.Module) -> str:
    """SHA-256 (hex) of the parameters that require no gradient, '' where all do: of what LoRA stands upon, by its values alone,
    whatever folder it came from and whatever names peft and transformers give it."""
    frozen = {name.replace(".base_layer.", ".").replace(TEXT + INNER, TEXT): weight
              for name, weight in net.named_parameters() if not weight.requires_grad}
    digest = hashlib.sha256()
    for name in sorted(frozen):
        weight = frozen[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if frozen else ""


def _with_own_text_encoder(own, state):
    """`state` with the names of `own` for its text encoder, or without it. Files are as published, `text_model.` first, which
    version 5 of transformers leaves out."""
    if not any(name.startswith(TEXT) for name in state):
        return state
    inner, renamed = INNER if any(name.startswith(TEXT + INNER) for name in own) else "", {}
    for name, value in state.items():
        if name.startswith(TEXT):
            name = TEXT + inner + name.removeprefix(TEXT).removeprefix(INNER)
            if not any(key.startswith(TEXT) for key in own) or name.endswith(".position_ids") and name not in own:
                continue
        renamed[name] = value
    return renamed


def _listed(entries: list[str], what: str) -> str:
    more = f", ... ({len(entries) - SHOWN} more)" if len(entries) > SHOWN else ""
    return f"{len(entries)} {what}: {', '.join(entries[:SHOWN])}{more}" if entries else ""


def _differing(net: nn.Module, own: dict, state: dict) -> dict[str, tuple]:
    """{setting: (value in `state`, value of the network)} of what the shapes tell of `state` and is otherwise in the network."""
    settings = getattr(net, "settings", lambda state: {})
    ours, theirs = settings(own), settings(state)
    return {key: (value, ours.get(key)) for key, value in theirs.items() if ours.get(key) != value}


def _advice(net: nn.Module, own: dict, state: dict) -> list[str]:
    """What would be right: the settings that the shapes tell, or a hint at a foreign layout."""
    if not set(own) & set(state):
        prefixes = sorted({key.split(".")[0] for key in state})
        return [f"no key in common; the checkpoint's begin with {', '.join(prefixes[:SHOWN])}: it belongs to "
                "another network, or its tensors lie one level deeper or under a prefix"]
    options = getattr(net, "options", {})  # where a setting is not one of config.nnet
    lines = [f"the checkpoint has {key}={theirs!r}{'' if ours is None else f', the network {ours!r}'}: "
             f"set --{options.get(key, f'config.nnet.{key}')}={theirs}"
             for key, (theirs, ours) in _differing(net, own, state).items()]
    found = adaptations(net, state)
    if found:
        lines.append("or to begin a training with these weights all the same: --config.train.init=WEIGHTS "
                     + init_without(prefix for *_, prefix in found.values()))
    return lines
