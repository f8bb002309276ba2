"""What a run was trained with beside its own weights: autoencoder, scale of the latents and text encoder, by
their hashes.

A network knows the latents and the states that it was trained on, and no others; its samples depend on the
decoder too. All of that may be replaced where it lies without the run folder changing, so each run notes it
when it begins, in identity.json, and whoever opens the run compares.
"""

import hashlib
import json
import logging
from pathlib import Path

from libs import data, engine, pipeline
from libs.pipeline import check_scale, same_scale

IDENTITY = "identity.json"  # of a run
CODEC = "codec.json"  # of runs of train_class_ldm.py: name and fingerprint of the encoding half alone
HASH_DIGITS = 16
# Options of config.codec that change neither latents nor images.
_WITHOUT_EFFECT = ("decode_batch", "scale_factor")


def record_identity(run, codec, encoder=None):
    """Note in the run folder what codec and text encoder are; a run that resumes has to have the same.

    Called by every process before the first step.

    Raises:
        ValueError: they are others than those that the run began with; or a new run would train on latents of
            another scale than the autoencoder's folder says, see `check_scale`.
    """
    now = run.from_main(pipeline.trained_with(codec, encoder) if run.is_main else None)
    before = engine.read_json(run.folder / IDENTITY, None)
    if run.resumes:
        if before is None:
            refuse(run.folder, {"codec": _scale_of(run.folder)}, now)
            log_unknown(run.folder, now, recorded=True)
            run.record(IDENTITY, now)
        else:
            refuse(run.folder, before, now)
            run.record(IDENTITY, before)
        return
    check_scale(codec)
    run.record(IDENTITY, now)


def check_identity(home, now, config):
    """Compare what a run was trained with and what it is opened with.

    A decoder or a scale factor that the command line chose, by another option than the run's config.json has,
    is a warning: decoders of the same latents may be exchanged.

    Args:
        home: the run folder.
        now: pipeline.trained_with(...) of the codec and encoder in use.
        config: as the run is opened now.
    Raises:
        ValueError: names what differs and what to do.
    """
    home = Path(home)
    before = engine.read_json(home / IDENTITY, None) or _of_older_run(home, config)
    if before is None:
        log_unknown(home, now)
        return
    then, here = engine.saved_config(home), json.loads(config.to_json_best_effort())
    refuse(home, before, now, chosen=_chosen(then, here))


def log_unknown(home, now, recorded=False):
    """Say of a run of latents that it does not say its autoencoder; `recorded`: it does from now on."""
    parts = {"autoencoder": now["codec"]["name"] != "Pixels", "text encoder": bool(now["encoder"])}
    if any(parts.values()):
        what = " and ".join(name for name, used in parts.items() if used)
        end = ("whether it is the one that the run began with is not known. The present one is recorded as the "
               "training goes on" if recorded else "so that another one would not be noticed")
        logging.info("%s is older than %s: this run does not say its %s, %s", home, IDENTITY, what, end)


def refuse(home, before, now, chosen=()):
    """ValueError where codec or encoder differ; `chosen` may hold 'decoder' and 'scale_factor', which are
    then a warning."""
    ours, theirs = before.get("codec") or {}, now["codec"]
    wrong = [key for key in ("name", "fingerprint", "decoder") if ours.get(key) and ours[key] != theirs[key]]
    if ours.get("scale_factor") and not same_scale(ours["scale_factor"], theirs["scale_factor"]):
        wrong.append("scale_factor")
    deliberate = [key for key in wrong if key in chosen] if not {"name", "fingerprint"} & set(wrong) else []
    if deliberate:
        logging.warning("%s was trained with the autoencoder %s; the command line gives %s: images are decoded "
                        "otherwise than in the training", home, describe(ours), describe(theirs))
    if set(wrong) - set(deliberate):
        effect = "its decoder makes other images" if wrong == ["decoder"] else "the network knows other latents"
        scale = f" --config.codec.scale_factor={ours['scale_factor']:.6g}" if "scale_factor" in wrong else ""
        raise ValueError(
            f"{home} was trained with the autoencoder {describe(ours)}; config.codec now gives {describe(theirs)}: "
            f"{effect}. Give the autoencoder of the training, wherever it lies now: --config.codec.path=FOLDER{scale}"
            " (of a whole pipeline, --config.nnet.path=FOLDER). Where its own training went on and no copy is left, "
            "train this network anew on the present one, in another --workdir")
    ours, theirs = before.get("encoder") or {}, now["encoder"]
    wrong = [key for key in ("name", "fingerprint", "shape") if ours.get(key) and ours[key] != theirs.get(key)]
    if ours and theirs and wrong:
        raise ValueError(
            f"{home} was trained with the text encoder {_words(ours)}; config.encoder now gives {_words(theirs)}: the "
            "network knows other states of the same texts. Give the text encoder of the training, wherever it lies "
            "now: --config.encoder.path=FOLDER (of a whole pipeline, --config.nnet.path=FOLDER)")


def describe(codec):
    """A codec of identity.json in words."""
    parts = [f"decoder {codec['decoder'][:HASH_DIGITS]}"] if codec.get("decoder") else []
    parts += [f"scale factor {codec['scale_factor']:.6g}"] if codec.get("scale_factor") else []
    named = [_words(codec)] if codec.get("name") else []
    return " ".join([*named, f"({', '.join(parts)})"] if parts else named)


def facts_of(identity):
    """What of an identity tells an image from another one, as facts of a sample; {} for pixels without
    text."""
    if not identity:
        return {}
    codec, encoder = identity["codec"], identity["encoder"]
    facts = {} if codec["name"] == "Pixels" else {
        "autoencoder": hashlib.sha256(json.dumps(codec, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]}
    return facts | ({"text_encoder": encoder["fingerprint"][:HASH_DIGITS]} if encoder else {})


def _words(part):
    return f"{part['name']} {part['fingerprint'][:HASH_DIGITS]}"


def _of_older_run(home, config):
    """What a run without identity.json says in other files: codec.json, else its feature store; None for
    nothing."""
    found = {"codec": engine.read_json(home / CODEC, {})}
    if not found["codec"] and config.get("features", {}).get("path", ""):
        place = data.feature_folder(config.features, config.dataset.get("split", ""), home)
        found = engine.read_json(place / "manifest.json", {}).get("identity") or found
    if not found["codec"]:
        return None
    return found | {"codec": found["codec"] | _scale_of(home)}


def _scale_of(home):
    """{'scale_factor': number} that a run's config.json gives; {} where it left that to the autoencoder."""
    given = engine.saved_config(home).get("codec", {}).get("scale_factor", 0.0)
    return {"scale_factor": given} if given else {}


def _chosen(before, now):
    """Which of 'decoder' and 'scale_factor' the command line gives otherwise than a run's config.json."""
    then, here = before.get("codec", {}), now.get("codec", {})
    other = any(then.get(key) != here.get(key) for key in {*then, *here} - set(_WITHOUT_EFFECT))
    other = other or before.get("nnet", {}).get("path", "") != now.get("nnet", {}).get("path", "")
    scaled = here.get("scale_factor", 0.0) not in (0.0, then.get("scale_factor", 0.0))
    return ["decoder"] * other + ["scale_factor"] * scaled
