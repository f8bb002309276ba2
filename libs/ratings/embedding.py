"""A picture and a prompt as two vectors of frozen networks: what a filter of a few hundred ratings learns upon.

    embedding.get(kind='clip', path='openai/clip-vit-base-patch32')            # one network that was trained on pairs
    embedding.get(kind='pair', images=('classifier:workdir/net', 'colour'), text={'name': 'words'})   # any two, unacquainted

Of an aligned embedding (clip) the cosine between image and text means something before any rating was given.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch.nn import functional as F

from libs import encoders, files, metrics

KINDS = ("clip", "pair")
HERE = "{filter}"  # in a saved filter: its own folder, which holds small image networks of one's own
BATCH, TEXTS_KEPT = 32, 4096
PREPARED = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample")  # what decides pixels


def get(kind, *, device="cpu", **options):
    """The embedding of that kind; `options` as of `Clip` or `Pair`. ValueError for an unknown kind or option."""
    build = {"clip": Clip, "pair": Pair}.get(kind)
    if build is None:
        raise ValueError(f"encoder.kind={kind!r}: known are {', '.join(KINDS)}")
    unknown = sorted(set(options) - set(build.OPTIONS))
    if unknown:
        raise ValueError(f"encoder.{unknown[0]} is no option of kind={kind!r}, which takes {', '.join(build.OPTIONS)}")
    return build(device=device, **options)


class Embedding:
    """What both kinds share; subclasses define `_images` and `_texts`, and end their constructor by `_settle`.

    Attributes:
        dims: (Di, Dt). blocks: widths that make up Di, one for each image network. aligned: whether Di = Dt and cosines mean
            agreement. options: what `get` takes to build it again.
        fingerprint: sha256 (hex) over weights and options that decide the vectors, not over paths.
    """

    aligned = False

    def images(self, images):
        """uint8 images (N, C, H, W), or a list of (C, H, W) of different sizes -> float32 (N, Di) on the CPU."""
        if torch.is_tensor(images):
            metrics.features.check_images(images)
            parts = [self._images(part).float().cpu() for part in images.split(BATCH)]
            return torch.cat(parts) if parts else torch.empty(0, self.dims[0])
        found, of_shape = torch.empty(len(images), self.dims[0]), {}
        for number, image in enumerate(images):
            of_shape.setdefault(tuple(image.shape), []).append(number)
        for numbers in of_shape.values():
            for start in range(0, len(numbers), BATCH):
                part = numbers[start:start + BATCH]
                found[part] = self.images(torch.stack([images[i] for i in part]))
        return found

    def texts(self, texts):
        """N texts -> float32 (N, Dt) on the CPU; a text that comes again is embedded once."""
        texts = encoders.base.checked(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > TEXTS_KEPT:
            self._known, new = {}, list(dict.fromkeys(texts))
        for start in range(0, len(new), BATCH):
            part = new[start:start + BATCH]
            self._known |= dict(zip(part, self._texts(part).float().cpu()))
        return torch.stack([self._known[text] for text in texts]) if texts else torch.empty(0, self.dims[1])

    def words(self, texts):
        """The words of N texts, a set, where the encoder knows no others than those it is trained on here; else None."""
        return None

    def own_networks(self):
        """{number among options['images']: folder} of small networks that a saved filter takes along."""
        return {}

    def _settle(self, *parts):
        """Measure the widths, and hash what decides the vectors."""
        self._known, self.dims = {}, (0, 0)
        self.dims = self.images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1], self.texts([""]).shape[1]
        self.blocks = [self.dims[0]]
        self.fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Clip(Embedding):
    """CLIP or SigLIP of transformers: normalised projections of both towers into their common space.

    path: a folder written by save_pretrained, read without a network, or a name on the hub; safetensors.

    Raises:
        OSError: nothing at `path`. ValueError: what is there is no such network.
    """

    OPTIONS = ("path",)
    aligned = True

    def __init__(self, path, *, device="cpu"):
        self.options, self.device = {"kind": "clip", "path": str(path)}, torch.device(device)
        self.net, self.tokenizer, self.processor = _load_clip(path)
        self.net = self.net.to(self.device).eval().requires_grad_(False)
        text = self.net.config.text_config
        self.window = min(getattr(text, "max_position_embeddings", 77), self.tokenizer.model_max_length)
        prepared = json.loads(self.processor.to_json_string())
        prepared = {key: prepared.get(key) for key in PREPARED}
        self._settle("clip", type(self.net).__name__, _hash(self.net), self.window, prepared,
                     hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest())

    @torch.inference_mode()
    def _images(self, images):
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        pixels = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        with metrics.features.full_precision(self.device):
            return F.normalize(_vector(self.net.get_image_features(pixel_values=pixels.to(self.device))).float(), dim=1)

    @torch.inference_mode()
    def _texts(self, texts):
        siglip = "siglip" in self.net.config.model_type  # it was trained with every text padded to the window
        tokens = self.tokenizer(texts, padding="max_length" if siglip else True, truncation=True, max_length=self.window,
                                return_tensors="pt").to(self.device)
        tokens = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        if siglip:
            tokens.pop("attention_mask", None)
        with metrics.features.full_precision(self.device):
            return F.normalize(_vector(self.net.get_text_features(**tokens)).float(), dim=1)


class Pair(Embedding):
    """Image networks and a text encoder that never met: their agreement is left to be learned from ratings and pairs.

    images: a name of `libs.metrics.extractor`, or several, whose features stand side by side: one that tells content
        (classifier:<folder>) beside one that tells damage (colour, timm:resnet18@random).
    text: {'name': ..., options} of `libs.encoders.get`. A text is the mean of its token states. Of hashed words these hardly know
        their order: two prompts of the same words are nearly one.
    """

    OPTIONS = ("images", "text")

    def __init__(self, images, text, *, device="cpu"):
        names = (images,) if isinstance(images, str) else tuple(images)
        if not names or not all(names):
            raise ValueError(f"encoder.images={images!r}: expected a name such as classifier:<folder> or timm:resnet18@random, "
                             "or several")
        text = dict(text)
        if text.get("name") == "tokens":
            raise ValueError("encoder.text.name='tokens' gives numbers of words, not states: take words, hf, clip, sentence or t5")
        self.options = {"kind": "pair", "images": list(names), "text": text}
        self.device = torch.device(device)
        self.extractors = [metrics.extractor(name, device=device) for name in names]
        self.encoder = encoders.get(**text).to(self.device)
        self._settle("pair", [each.fingerprint for each in self.extractors], self.encoder.fingerprint)
        self.blocks = [each.dims for each in self.extractors]

    def words(self, texts):
        if not isinstance(self.encoder, encoders.words.Words):
            return None
        return {word for text in dict.fromkeys(texts) for word in encoders.words._tokens(text)[1:]}

    def own_networks(self):
        found = {}
        for number, name in enumerate(self.options["images"]):
            kind, _, folder = name.partition(":")
            if kind == "classifier" or "/" in kind:
                found[number] = Path(folder if kind == "classifier" else name)
        return found

    def _images(self, images):
        parts = []
        for extractor in self.extractors:
            channels = extractor.built.channels
            own = images.float().mean(1, keepdim=True).round().to(torch.uint8) if channels == 1 < images.shape[1] else images
            parts.append(extractor(own))
        return torch.cat(parts, dim=1)

    def _texts(self, texts):
        states, mask = self.encoder.encode(texts).float(), self.encoder.mask(texts)[..., None].float()
        return (states * mask).sum(1) / mask.sum(1)


def _load_clip(path):
    """(network, tokenizer, image processor) of a folder or hub name."""
    import transformers

    advice = ("give a folder that save_pretrained wrote, or a name on the hub that this machine can reach, such as "
              "openai/clip-vit-base-patch32; or take encoder.kind=pair, which needs no such network")
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not path or not local and (str(path).startswith((".", "/", "~")) or str(path).count("/") > 1):
        raise FileNotFoundError(f"encoder.path={str(path)!r}: there is no such folder; {advice}")
    where, options = str(folder) if local else str(path), {"local_files_only": local, "trust_remote_code": False}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        net, found = transformers.AutoModel.from_pretrained(where, dtype=torch.float32, use_safetensors=True,
                                                            output_loading_info=True, **options)
        if not hasattr(net, "get_image_features") or not hasattr(net, "get_text_features"):
            raise ValueError(f"it holds {type(net).__name__}, which embeds no pairs of image and text")
        if found["missing_keys"]:
            raise ValueError(f"it lacks weights: {', '.join(sorted(found['missing_keys'])[:5])}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        processor = transformers.AutoImageProcessor.from_pretrained(where, **options)
    except Exception as error:  # transformers raises many kinds for a file that is missing or foreign
        reason = (files.describe_damaged(where) or str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")[:300]
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"encoder.path={str(path)!r}: no CLIP or SigLIP could be loaded ({reason}); {advice}") from error
    finally:
        transformers.logging.set_verbosity(level)
    return net, tokenizer, processor


def _vector(found):
    """The projection: what older versions of transformers give, or a field of what newer ones give."""
    return found if torch.is_tensor(found) else found.pooler_output


def _hash(net):
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(json.dumps([name, list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
