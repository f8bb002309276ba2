"""Frozen language models of transformers as text encoders: the token states of their last layer."""

import hashlib
import json

import torch
from torch import Tensor

from libs.encoders import pretrained
from libs.encoders.base import Encoder, checked

# What decides the states of these families and shows in no tensor.
_SHAPING = ("model_type", "num_attention_heads", "num_heads", "hidden_act", "dense_act_fn", "feed_forward_proj",
            "layer_norm_eps", "layer_norm_epsilon", "position_embedding_type", "relative_attention_num_buckets",
            "relative_attention_max_distance", "rope_theta")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions begin after the padding token's id


class Tokenized(Encoder):
    """What a tokenizer of transformers decides: subclasses set `tokenizer` and `shape`, of which the first entry is the window."""

    lower_case = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def mask(self, texts: list[str]) -> Tensor:
        """N texts -> bool (N, L), True at tokens and False at padding, on the encoder's device."""
        if not checked(texts):
            return torch.empty(0, self.shape[0], dtype=torch.bool, device=self.device)
        return self._tokens(texts)["attention_mask"].bool().to(self.device)

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens that each text needs, uncut, special tokens included."""
        texts = checked(texts)
        return [len(ids) for ids in self._tokenize(texts, verbose=False)["input_ids"]] if texts else []

    def _tokens(self, texts):
        return self._tokenize(texts, padding="max_length", truncation=True, max_length=self.shape[0], return_tensors="pt")

    def _tokenize(self, texts, **options):
        return self.tokenizer([text.lower() for text in texts] if self.lower_case else list(texts), **options)

    def _lost(self, text: str) -> str:
        if not self.tokenizer.is_fast:
            return self.tokenizer.decode(self._tokenize([text], verbose=False)["input_ids"][0][self.shape[0]:],
                                         skip_special_tokens=True)
        kept = self._tokenize([text], truncation=True, max_length=self.shape[0], return_offsets_mapping=True)
        return text[max(end for _, end in kept["offset_mapping"][0]):].strip()

    def _tokenizer_state(self):
        """What decides the tokens of a text, whatever the tokenizer was used for before."""
        if not self.tokenizer.is_fast:
            return [type(self.tokenizer).__name__, self.tokenizer.get_vocab(), self.tokenizer.special_tokens_map]
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return {key: value for key, value in state.items() if key not in ("truncation", "padding")}


class HuggingFace(Tokenized):
    """Any text encoder that AutoModel and AutoTokenizer load: the family of BERT, BioLinkBERT, BiomedCLIP's text tower.

    Each text is padded to `max_length`. Tokens do not attend to padding, whose states are what the network gives there.

    Args:
        path: a local folder, which is read without a network, or a name on the hub.
        max_length: L, tokens of the window, special tokens included.
        subfolder: where in the folder or repository the network lies; see `pretrained.load`.
        dtype: '' (float32), 'bfloat16' or 'float16', in which the network computes; states are float32 in any case.

    Raises:
        OSError: nothing at `path`. ValueError: what is there is no text encoder of this kind, or its window is shorter.
    """

    architecture = "AutoModel"
    attends_to_padding = False
    zero_padding = False

    def __init__(self, path: str, *, max_length: int = 256, subfolder: str = "", dtype: str = ""):
        super().__init__()
        net, self.tokenizer = pretrained.load(path, architecture=self.architecture, subfolder=subfolder, dtype=dtype)
        self._check(net.config, path, max_length)
        if getattr(net, "pooler", None) is not None:
            net.pooler = None  # often untrained, and of no use here
        self.net, self.dtype = net.requires_grad_(False), dtype or "float32"
        self.shape = max_length, net.config.hidden_size
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of options, tokenizer and weights; not of the path."""
        config = {key: getattr(self.net.config, key, None) for key in _SHAPING}
        options = [type(self.net).__name__, self.attends_to_padding, self.lower_case, *self.shape, self.dtype]
        options += ["zero_padding"] if self.zero_padding else []
        digest = hashlib.sha256(json.dumps([options, config, self._tokenizer_state()], sort_keys=True, default=str).encode())
        for name, value in sorted(self.net.state_dict().items()):
            digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """N texts -> states (N, L, D) of the last layer, float32, on the encoder's device; what exceeds L is cut off."""
        device = self.net.device
        if not checked(texts):
            return torch.empty(0, *self.shape, device=device)
        tokens = self._tokens(texts).to(device)
        with torch.autocast(device.type, enabled=False):
            if self.attends_to_padding:
                return self.net(input_ids=tokens["input_ids"]).last_hidden_state.float()
            states = self.net(**tokens).last_hidden_state.float()
        return states.masked_fill(tokens["attention_mask"][..., None] == 0, 0.0) if self.zero_padding else states

    def _check(self, config, path, max_length):
        if getattr(config, "is_encoder_decoder", False) and self.architecture == "AutoModel":
            raise ValueError(f"{path} holds {config.model_type}, an encoder with a decoder: encoder.name=t5 takes that of T5")
        if not hasattr(config, "hidden_size"):
            raise ValueError(f"{path} holds {config.model_type}, which is more than a text encoder"
                             + (": use encoder.name=clip" if config.model_type == "clip" else ""))
        if self.lengths([""])[0] < 1:
            raise ValueError(f"{path}: its tokenizer adds no special token, so that the empty text has no state; use a text "
                             "encoder such as those of BERT's family")
        positions = getattr(config, "max_position_embeddings", None) or max_length
        positions -= (config.pad_token_id + 1) if config.model_type in _OFFSET_POSITIONS else 0
        if not 2 <= max_length <= positions:
            raise ValueError(f"encoder.max_length={max_length}: expected 2 .. {positions}, the positions that {path} has")


class CLIP(HuggingFace):
    """CLIP's text encoder: the states of its last layer, normalised, as in U-ViT and Stable Diffusion 1.

    A token's state depends on the tokens before it alone, and padding is not masked, as there. Arguments as for
    `HuggingFace`; `openai/clip-vit-large-patch14` gives 77 x 768.
    """

    architecture = "CLIPTextModel"
    attends_to_padding = True

    def __init__(self, path: str, *, max_length: int = 77, subfolder: str = "", dtype: str = ""):
        super().__init__(path, max_length=max_length, subfolder=subfolder, dtype=dtype)


class T5(HuggingFace):
    """The encoder of T5, as PixArt uses it. Arguments as for `HuggingFace`; 'bfloat16' halves the 19 GB of T5-XXL.

    Of a PixArt pipeline give subfolder='text_encoder'.

    Args:
        zero_padding: states of padding are exactly 0, by which the network `pixart` tells them from tokens.
        lower_case: read texts in lower case, as PixArt was trained and as its pipeline in diffusers does.
    """

    architecture = "T5EncoderModel"

    def __init__(self, path: str, *, max_length: int = 120, subfolder: str = "", dtype: str = "", zero_padding: bool = False,
                 lower_case: bool = False):
        self.zero_padding, self.lower_case = zero_padding, lower_case
        super().__init__(path, max_length=max_length, subfolder=subfolder, dtype=dtype)


class Sentence(HuggingFace):
    """The transformer of a sentence-transformers model, its token states before they are pooled.

    Args:
        path: a local folder or a name on the hub, with modules.json.
        max_length: L; 0 is the model's own max_seq_length, at most 256.
        dtype: see `HuggingFace`.
    """

    def __init__(self, path: str, *, max_length: int = 0, dtype: str = ""):
        modules = pretrained.read_json(path, "modules.json", default=[])
        folders = [module.get("path", "") for module in modules if module.get("type", "").endswith(".Transformer")]
        if len(folders) != 1:
            raise ValueError(f"{path} is no sentence-transformers model: its modules.json should name one Transformer, and "
                             f"names {len(folders)}; encoder.name=hf takes any other text encoder")
        settings = pretrained.read_json(path, "sentence_bert_config.json", folders[0], default={})
        self.lower_case = bool(settings.get("do_lower_case"))
        window = max_length or min(settings.get("max_seq_length") or 256, 256)
        super().__init__(path, max_length=window, subfolder=folders[0], dtype=dtype)
