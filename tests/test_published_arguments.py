"""Every argument of every published constructor gives the original's parameter names and shapes, or is refused.

Names and shapes are written out here a second time from the descriptions of the originals: U-ViT and VAP-Diffusion, DiT,
guided-diffusion; and from diffusers', transformers' and peft's own networks, which the others are.
"""

import functools
import itertools

import pytest
import torch
from torch import nn

from libs import backbones
from tests import tiny_pixart, tiny_sd


def shapes_of(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def meta(name, **kwargs):
    with torch.device("meta"):
        return backbones.get(name, **kwargs)


def grid(**choices):
    """All combinations, each a dict."""
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def pair(name, *shape, bias):
    return {f"{name}.weight": tuple(shape), f"{name}.bias": (bias,)}


# U-ViT and VAP-Diffusion

D = 24


def uvit_shapes(kind, *, depth, mlp_ratio, qkv_bias, mlp_time_embed, conv, skip, in_chans=4, patch=2, side=8, num_classes=-1,
                clip_dim=0, num_clip_token=0):
    label = kind == "uvit" and num_classes > 0 or kind == "uvit_t2i_label"
    text, hidden, patches = kind != "uvit", int(D * mlp_ratio), (side // patch) ** 2

    def block(name, merges):
        shapes = {}
        for norm in ("norm1", "norm2"):
            shapes |= pair(f"{name}.{norm}", D, bias=D)
        shapes |= linear(f"{name}.attn.qkv", 3 * D, D, qkv_bias) | linear(f"{name}.attn.proj", D, D)
        shapes |= linear(f"{name}.mlp.fc1", hidden, D) | linear(f"{name}.mlp.fc2", D, hidden)
        return shapes | (linear(f"{name}.skip_linear", D, 2 * D) if merges else {})

    shapes = {"pos_embed": (1, 1 + label + text * num_clip_token + patches, D)}
    shapes |= pair("patch_embed.proj", D, in_chans, patch, patch, bias=D)
    shapes |= linear("time_embed.0", 4 * D, D) | linear("time_embed.2", D, 4 * D) if mlp_time_embed else {}
    shapes |= {"label_emb.weight": (num_classes, D)} if label else {}
    shapes |= linear("context_embed", D, clip_dim) if text else {}
    for i in range(depth // 2):
        shapes |= block(f"in_blocks.{i}", False) | block(f"out_blocks.{i}", skip)
    shapes |= block("mid_block", False) | pair("norm", D, bias=D) | linear("decoder_pred", patch ** 2 * in_chans, D)
    shapes |= pair("final_layer", in_chans, in_chans, 3, 3, bias=in_chans) if conv else {}
    if kind == "uvit_t2i_prototype":
        shapes["prototype.weight"] = (num_classes, 2 * patches * D)
        for name in "qkv":
            shapes |= linear(name, D, D)
        for name in ("norm1", "norm2", "normp"):
            shapes |= pair(f"Q_former.{name}", D, bias=D)
        for name in ("attn.ql", "attn.kl", "attn.vl", "z1", "z2"):
            shapes |= linear(f"Q_former.{name}", D, D, qkv_bias)  # all five follow qkv_bias in the original
        shapes |= linear("Q_former.attn.proj", D, D) | linear("Q_former.mlp.fc1", hidden, D) | linear("Q_former.mlp.fc2", D, hidden)
    return shapes


@pytest.mark.parametrize("kind, classes", [("uvit", -1), ("uvit", 5), ("uvit_t2i", None), ("uvit_t2i_label", 5),
                                           ("uvit_t2i_prototype", 5)])
def test_uvit(kind, classes):
    options = {} if classes is None else {"num_classes": classes}
    options |= {} if kind == "uvit" else {"clip_dim": 10, "num_clip_token": 3}
    without_names = {"qk_scale": 0.3, "use_checkpoint": True, "norm_layer": functools.partial(nn.LayerNorm, eps=1e-6)}
    for number, choice in enumerate(grid(mlp_ratio=(4, 2.5), qkv_bias=(False, True), mlp_time_embed=(False, True),
                                         conv=(True, False), skip=(True, False))):
        choice["depth"] = (2, 4)[(number + number // 2) % 2]
        net = meta(kind, img_size=8, patch_size=2, in_chans=4, embed_dim=D, num_heads=4, **choice, **options,
                   **(without_names if number % 3 else {}))
        assert shapes_of(net) == uvit_shapes(kind, **choice, **options), choice


def test_uvit_s_norm_layer_and_qkv_bias_are_used():
    kwargs = dict(img_size=8, patch_size=2, in_chans=4, embed_dim=D, depth=2, num_heads=4, num_classes=3, clip_dim=10,
                  num_clip_token=3)
    torch.manual_seed(0)
    net = backbones.get("uvit_t2i_prototype", qkv_bias=True, norm_layer=functools.partial(nn.LayerNorm, eps=0.5), **kwargs)
    assert {module.eps for module in net.modules() if isinstance(module, nn.LayerNorm)} == {0.5}
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), dict(label=torch.tensor([0, 2]), text=torch.randn(2, 3, 10))
    with torch.no_grad():
        before = net(x, t, **cond)
        for name in ("attn.ql", "attn.vl", "z1", "z2"):
            bias = net.get_parameter(f"Q_former.{name}.bias")
            assert not bias.any(), "linear maps begin with a bias of zero"
            bias.normal_()
            assert not torch.equal(net(x, t, **cond), before), name
            bias.zero_()
    earlier = {name: value for name, value in net.state_dict().items()
               if name not in [f"Q_former.{linear}.bias" for linear in ("attn.ql", "attn.kl", "attn.vl", "z1", "z2")]}
    with torch.no_grad():  # our own runs of before had no such biases, which is to compute with zeros
        net.Q_former.z1.bias.normal_()
        assert torch.equal(backbones.load(net, earlier)(x, t, **cond), before)
    plain = backbones.get("uvit_t2i_prototype", **kwargs).state_dict()
    with pytest.raises(ValueError, match="qkv_bias=False, the network True: set --config.nnet.qkv_bias=False"):
        backbones.load(net, plain)


# DiT

def dit_shapes(*, depth, mlp_ratio, class_dropout_prob, num_classes, learn_sigma, hidden=24, patch=2, side=8, channels=4):
    shapes = {"pos_embed": (1, (side // patch) ** 2, hidden)}
    shapes |= pair("x_embedder.proj", hidden, channels, patch, patch, bias=hidden)
    shapes |= linear("t_embedder.mlp.0", hidden, 256) | linear("t_embedder.mlp.2", hidden, hidden)
    shapes["y_embedder.embedding_table.weight"] = (num_classes + (class_dropout_prob > 0), hidden)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.attn.qkv", 3 * hidden, hidden) | linear(f"{block}.attn.proj", hidden, hidden)
        shapes |= linear(f"{block}.mlp.fc1", int(hidden * mlp_ratio), hidden) | linear(f"{block}.mlp.fc2", hidden, int(hidden * mlp_ratio))
        shapes |= linear(f"{block}.adaLN_modulation.1", 6 * hidden, hidden)
    out = patch ** 2 * channels * (2 if learn_sigma else 1)
    return shapes | linear("final_layer.linear", out, hidden) | linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)


def test_dit():
    for choice in grid(depth=(1, 3), mlp_ratio=(4.0, 2.5), class_dropout_prob=(0.1, 0.0, 1.0), num_classes=(7, 1000),
                       learn_sigma=(True, False)):
        net = meta("dit", input_size=8, patch_size=2, in_channels=4, hidden_size=24, num_heads=4, **choice)
        assert shapes_of(net) == dit_shapes(**choice), choice
    for choice in grid(hidden=(8, 48), patch=(1, 4), side=(4, 8), channels=(1, 3)):
        shared = dict(depth=1, mlp_ratio=4.0, class_dropout_prob=0.1, num_classes=2, learn_sigma=True)
        net = meta("dit", input_size=choice["side"], patch_size=choice["patch"], in_channels=choice["channels"],
                   hidden_size=choice["hidden"], num_heads=4, **shared)
        assert shapes_of(net) == dit_shapes(**choice, **shared), choice


# guided-diffusion

class Adm:
    """guided-diffusion's UNet and encoder, layer by layer, as {name: shape}; `feature` sums the widths of all its outputs."""

    def __init__(self, *, image_size, in_channels, model_channels, num_res_blocks, attention_resolutions, channel_mult, conv_resample,
                 use_scale_shift_norm, resblock_updown):
        self.shapes, self.embedding, self.film = {}, 4 * model_channels, use_scale_shift_norm
        self.attends, self.updown, self.conv = attention_resolutions, resblock_updown, conv_resample
        self.widths, self.blocks = [int(mult * model_channels) for mult in channel_mult], num_res_blocks
        self.shapes |= linear("time_embed.0", self.embedding, model_channels) | linear("time_embed.2", self.embedding, self.embedding)
        width, number = self.widths[0], 1
        self.shapes |= pair("input_blocks.0.0", width, in_channels, 3, 3, bias=width)
        self.skips = [width]
        for level, out in enumerate(self.widths):
            for _ in range(num_res_blocks):
                self.residual(f"input_blocks.{number}.0", width, out)
                if 2 ** level in attention_resolutions:
                    self.attention(f"input_blocks.{number}.1", out)
                width, number = out, number + 1
                self.skips.append(width)
            if level < len(self.widths) - 1:
                if resblock_updown:
                    self.residual(f"input_blocks.{number}.0", width, width)
                elif conv_resample:
                    self.shapes |= pair(f"input_blocks.{number}.0.op", width, width, 3, 3, bias=width)
                number += 1
                self.skips.append(width)
        self.residual("middle_block.0", width, width)
        self.attention("middle_block.1", width)
        self.residual("middle_block.2", width, width)
        self.width, self.feature, self.side = width, sum(self.skips) + width, image_size // 2 ** (len(self.widths) - 1)

    def residual(self, name, into, out):
        self.shapes |= pair(f"{name}.in_layers.0", into, bias=into) | pair(f"{name}.in_layers.2", out, into, 3, 3, bias=out)
        self.shapes |= linear(f"{name}.emb_layers.1", out * (1 + self.film), self.embedding)
        self.shapes |= pair(f"{name}.out_layers.0", out, bias=out) | pair(f"{name}.out_layers.3", out, out, 3, 3, bias=out)
        if into != out:
            self.shapes |= pair(f"{name}.skip_connection", out, into, 1, 1, bias=out)

    def attention(self, name, width):
        self.shapes |= pair(f"{name}.norm", width, bias=width) | pair(f"{name}.qkv", 3 * width, width, 1, bias=3 * width)
        self.shapes |= pair(f"{name}.proj_out", width, width, 1, bias=width)

    def unet(self, *, out_channels, num_classes):
        if num_classes is not None:
            self.shapes["label_emb.weight"] = (num_classes, self.embedding)
        width, number = self.width, 0
        for level in reversed(range(len(self.widths))):
            for i in range(self.blocks + 1):
                name, out, place = f"output_blocks.{number}", self.widths[level], 1
                self.residual(f"{name}.0", width + self.skips.pop(), out)
                width = out
                if 2 ** level in self.attends:
                    self.attention(f"{name}.1", width)
                    place = 2
                if level and i == self.blocks:
                    if self.updown:
                        self.residual(f"{name}.{place}", width, width)
                    elif self.conv:
                        self.shapes |= pair(f"{name}.{place}.conv", width, width, 3, 3, bias=width)
                number += 1
        self.shapes |= pair("out.0", width, bias=width) | pair("out.2", out_channels, width, 3, 3, bias=out_channels)
        return self.shapes

    def classifier(self, *, out_channels, pool):
        width = self.width
        if pool in ("adaptive", "attention"):
            self.shapes |= pair("out.0", width, bias=width)
        if pool == "adaptive":
            self.shapes |= pair("out.3", out_channels, width, 1, 1, bias=out_channels)
        elif pool == "attention":
            self.shapes["out.2.positional_embedding"] = (width, self.side ** 2 + 1)
            self.shapes |= pair("out.2.qkv_proj", 3 * width, width, 1, bias=3 * width)
            self.shapes |= pair("out.2.c_proj", out_channels, width, 1, bias=out_channels)
        elif pool == "spatial":
            self.shapes |= linear("out.0", 2048, self.feature) | linear("out.2", out_channels, 2048)
        else:
            self.shapes |= linear("out.0", 2048, self.feature) | pair("out.1", 2048, bias=2048) | linear("out.3", out_channels, 2048)
        return self.shapes


SHARED = grid(attention_resolutions=((2, 4), (1,), ()), channel_mult=((1, 2, 2), (0.5, 1, 1), (2,)), conv_resample=(True, False),
              use_scale_shift_norm=(False, True), resblock_updown=(False, True))
OTHERS = ({}, dict(num_heads=4, num_heads_upsample=2, dropout=0.3, use_checkpoint=True, dims=2, use_fp16=False),
          dict(num_head_channels=32, use_new_attention_order=True))  # which give no other names


def test_adm_unet():
    for number, choice in enumerate(SHARED):
        shared = dict(image_size=16, in_channels=(1, 3)[number % 2], model_channels=64, num_res_blocks=1 + number // 4 % 2, **choice)
        options = dict(out_channels=(3, 6)[number % 2], num_classes=(None, 5)[number // 2 % 2])
        net = meta("adm_unet", **shared, **options, **OTHERS[number % 3])
        assert shapes_of(net) == Adm(**shared).unet(**options), (choice, options)


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_adm_classifier(pool):
    for number, choice in enumerate(SHARED):
        shared = dict(image_size=16, in_channels=3, model_channels=64, num_res_blocks=1 + number // 4 % 2, **choice)
        net = meta("adm_classifier", **shared, out_channels=7, pool=pool, **{"num_head_channels": 32, **OTHERS[number % 3]})
        assert shapes_of(net) == Adm(**shared).classifier(out_channels=7, pool=pool), choice


@pytest.mark.parametrize("name", ["adm_unet", "adm_classifier"])
@pytest.mark.parametrize("argument, message", [(dict(dims=3), "dims=3.*give 2"), (dict(dims=1), "dims=1"),
                                               (dict(use_fp16=True), "--config.train.mixed_precision=fp16")])
def test_arguments_of_guided_diffusion_that_are_not_had_are_refused(name, argument, message):
    with pytest.raises(ValueError, match=message):
        meta(name, image_size=16, model_channels=32, out_channels=3, num_res_blocks=1, attention_resolutions=(), **argument)


def test_arguments_that_no_network_knows_are_refused():
    for name in ("uvit", "uvit_t2i", "dit", "adm_unet", "adm_classifier", "unet_label", "controlnet", "unet_sd", "pixart"):
        with pytest.raises(TypeError, match="window_size|required"):
            meta(name, window_size=7)


# diffusers' networks, under the names of the originals' parts

LABEL = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), cross_attention_dim=12, norm_num_groups=4)
TYPES = {True: (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")),
         False: (("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D"))}


def diffusers_unet(*, layers_per_block, attention_head_dim, first, adaptive_norm, **kwargs):
    from diffusers import UNet2DConditionModel
    more = dict(resnet_time_scale_shift="scale_shift", class_embed_type="projection", projection_class_embeddings_input_dim=12)
    return UNet2DConditionModel(**LABEL | kwargs, layers_per_block=layers_per_block, attention_head_dim=attention_head_dim,
                                down_block_types=TYPES[first][0], up_block_types=TYPES[first][1], **(more if adaptive_norm else {}))


def under(prefix, net):
    return {f"{prefix}.{name}": shape for name, shape in shapes_of(net).items()}


@pytest.mark.parametrize("legacy", [None, False, True])
def test_unet_label_and_controlnet(legacy):
    from diffusers import ControlNetModel
    choices = grid(layers_per_block=(1, 2), attention_head_dim=(2, 4), first=(True, False), adaptive_norm=(False, True),
                   num_classes=(5, -1))
    for choice in choices[::5]:
        choice, classes = {key: value for key, value in choice.items() if key != "num_classes"}, choice["num_classes"]
        options = LABEL | {key: value for key, value in choice.items() if key != "first"} | dict(
            down_block_types=TYPES[choice["first"]][0], up_block_types=TYPES[choice["first"]][1], num_classes=classes, dropout=0.1)
        with torch.device("meta"):
            unet = diffusers_unet(**choice)
            wanted = under("unet", unet)
            wanted |= {} if legacy else {"class_embedder.embedding.weight": (max(classes, 0) + 1, 12)}
            if legacy is not None:
                wanted |= under("controlnet", ControlNetModel.from_unet(unet, conditioning_channels=3,
                                                                        conditioning_embedding_out_channels=(4, 8)))
                wanted |= {"dummy_encoder.embedding": (1, 1, 12)} if legacy else {}
                options |= dict(conditioning_channels=3, conditioning_embedding_out_channels=(4, 8), legacy=legacy)
            assert shapes_of(backbones.get("unet_label" if legacy is None else "controlnet", **options)) == wanted, choice


# networks that begin with a published pipeline: their own names, and peft's for LoRA

def lora_shapes(net, rank, ends, *, magnitudes=False):
    """Names and shapes once peft stands beside the layers whose names end in `ends`, as whole parts of a name."""
    layers = {name: layer for name, layer in net.named_modules()
              if isinstance(layer, (nn.Linear, nn.Conv2d)) and any(name == end or name.endswith(f".{end}") for end in ends)}
    shapes = {}
    for name, shape in shapes_of(net).items():
        parent, _, last = name.rpartition(".")
        shapes[f"{parent}.base_layer.{last}" if parent in layers else name] = shape
    for name, layer in layers.items():
        kernel = tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else ()
        out, into = layer.weight.shape[:2]
        shapes[f"{name}.lora_A.default.weight"] = (rank, into, *kernel)
        shapes[f"{name}.lora_B.default.weight"] = (out, rank, *(1 for _ in kernel))
        if magnitudes:
            shapes[f"{name}.lora_magnitude_vector.default.weight"] = (out,)
    assert layers
    return shapes


ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
MEDART = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "proj", "linear", "linear_1", "linear_2")


def prefixed(prefix, shapes):
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def test_unet_sd(tmp_path):
    folder, parts = tiny_sd.save(tmp_path / "sd"), tiny_sd.parts()
    for choice in grid(lora_rank=(0, 2), train_text_encoder=(False, True), use_checkpoint=(False, True),
                       lora_targets=(ATTENTION, ("to_q", "conv1"))):
        rank, text, ends = choice["lora_rank"], choice["train_text_encoder"], choice["lora_targets"]
        wanted = prefixed("unet", lora_shapes(parts["unet"], rank, ends) if rank else shapes_of(parts["unet"]))
        if text:
            clip = parts["text_encoder"]
            wanted |= prefixed("text_encoder", lora_shapes(clip, rank, ("q_proj", "k_proj", "v_proj", "out_proj")) if rank
                               else shapes_of(clip))
        net = backbones.get("unet_sd", path=str(folder), sample_size=8, lora_alpha=4.0 if rank else 0.0, **choice)
        assert shapes_of(net) == wanted, choice


@pytest.mark.parametrize("rank", [0, 2])
def test_pixart(tmp_path, rank):
    folder, parts = tiny_pixart.save(tmp_path / "pixart"), tiny_pixart.parts()
    for choice in grid(train_text_encoder=(False, True), lora_targets=("medart", ("to_q", "proj")), text_targets=("published", "all"),
                       use_dora=(False, True), use_rslora=(False, True)):
        text, dora = choice["train_text_encoder"], choice["use_dora"]
        choice["base_dtype"] = "bfloat16" if dora != text else ""
        build = functools.partial(backbones.get, "pixart", path=str(folder), sample_size=8, lora_rank=rank, **choice)
        if dora and not (rank and text) or choice["use_rslora"] and not rank:
            with pytest.raises(ValueError, match="set --config.nnet.use_(dora|rslora)=False"):
                build()
            continue
        ends = MEDART if choice["lora_targets"] == "medart" else choice["lora_targets"]
        wanted = prefixed("transformer", lora_shapes(parts["transformer"], rank, ends) if rank else shapes_of(parts["transformer"]))
        if text:
            t5 = parts["text_encoder"]
            ends = ("q", "k", "v", "o", "wi", "wo") if choice["text_targets"] == "published" else (
                "q", "k", "v", "o", "wi_0", "wi_1", "wo")
            wanted |= prefixed("text_encoder", lora_shapes(t5, rank, ends, magnitudes=dora) if rank else shapes_of(t5))
            wanted = {name: shape for name, shape in wanted.items() if not name.endswith("encoder.embed_tokens.weight")}  # shared
        assert shapes_of(build()) == wanted, choice
