"""PixArt-alpha from a pipeline: its size and that of its LoRA, what is trained, what a config must agree with, and what is said
where a pipeline cannot be used."""

import copy
import json
import shutil

import pytest
import torch

from libs import backbones, encoders, pipeline
from libs.backbones.pixart import PixArt, TARGETS, TEXT_TARGETS, add_lora
from libs.pipeline import stable_diffusion
from tests import tiny_pixart

WINDOW = 12
TEXTS = ["A red lesion", "", "green, with a very long tail of words"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.save(tmp_path_factory.mktemp("models") / "pixart")


def net_of(folder, **options):
    return backbones.get(name="pixart", path=str(folder), sample_size=8, **options)


def tokens_of(folder, texts=TEXTS):
    return encoders.get(name="tokens", path=str(folder), subfolder="tokenizer", max_length=WINDOW).encode(texts)


def inputs(folder):
    torch.manual_seed(1)
    return torch.randn(3, 4, 8, 8), torch.tensor([0.0, 500.0, 999.0]), tokens_of(folder)


def trained(net):
    return {name: weight for name, weight in net.named_parameters() if weight.requires_grad}


def sizes(net):
    return [sum(weight.numel() for weight in net.parameters() if weight.requires_grad == wanted) for wanted in (False, True)]


def test_published_sizes():
    """Those of PixArt-XL-2 and of T5 v1.1 XXL, and of what Med-Art trains beside them."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel
    for rank, expected in (8, 6_882_688), (4, 3_441_344):
        with torch.device("meta"):
            net = PixArtTransformer2DModel(sample_size=64, caption_channels=4096)
            add_lora(net, rank, 8.0, TARGETS["medart"])
        assert sizes(net) == [610_856_096, expected]
        assert sum(name.endswith("lora_A.default.weight") for name in trained(net)) == 287
        assert net.proj_out.scaling == {"default": 8 / rank}
    config = T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    for named, modules, expected in ("published", 120, 9_043_968), ("all", 168, 14_548_992):
        with torch.device("meta"):
            net = T5EncoderModel(config)
            add_lora(net, 8, 8.0, TEXT_TARGETS[named])
        assert sizes(net) == [4_762_310_656, expected]
        assert sum(name.endswith("lora_A.default.weight") for name in trained(net)) == modules


def test_the_network_is_that_of_the_pipeline(folder):
    """Its noise, as diffusers computes it from T5's states and mask; LoRA changes nothing before the first step."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5EncoderModel
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer").eval()
    text_encoder = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    x, t, numbers = inputs(folder)
    mask = numbers != 0
    assert mask.sum(1).tolist()[1] == 1  # the empty text is one token
    with torch.no_grad():
        states = text_encoder(input_ids=numbers, attention_mask=mask).last_hidden_state
        expected = transformer(x, encoder_hidden_states=states, timestep=t, encoder_attention_mask=mask).sample[:, :4]
        net = net_of(folder, lora_rank=0).eval()
        assert torch.allclose(net(x, t, text=numbers), expected, atol=1e-6)
        own = net.states(numbers)
        assert torch.equal(own, states * mask[..., None]) and net.states(own) is own
        assert torch.allclose(net(x, t, text=own), expected, atol=1e-6)
        assert torch.allclose(net(x, t, text=states, text_mask=mask), expected, atol=1e-6)
        assert not torch.allclose(net(x, t, text=states), expected, atol=1e-3)  # where padding is taken for tokens
        assert torch.equal(net_of(folder, lora_rank=2, text_targets="all", use_dora=True).eval()(x, t, text=numbers),
                           net(x, t, text=numbers))
        bare = backbones.get(name="pixart", path=str(folder / "transformer"), sample_size=8, train_text_encoder=False)
        assert bare.text_encoder is None and torch.allclose(bare.eval()(x, t, text=own), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"lora_rank": 0}, {"lora_rank": 2, "text_targets": "all", "use_dora": True},
                                     {"lora_rank": 2, "lora_targets": ("to_q",), "text_targets": ("q",), "use_rslora": True},
                                     {"lora_rank": 2, "train_text_encoder": False}, {"lora_rank": 2, "base_dtype": "bfloat16"}])
def test_what_is_trained(folder, options):
    """Everything, or LoRA's matrices; a plain training step reaches all of it, through checkpoints too."""
    x, t, numbers = inputs(folder)
    own_text = options.get("train_text_encoder", True)
    net = net_of(folder, **options, use_checkpoint=True).train()
    text = numbers if own_text else net_of(folder, lora_rank=0).states(numbers).detach()
    names = trained(net)
    assert {name.split(".")[0] for name in names} == ({"transformer", "text_encoder"} if own_text else {"transformer"})
    if options["lora_rank"]:
        assert all(".lora_" in name for name in names)
    else:
        assert len(names) == len(list(net.parameters()))
    assert all(weight.dtype == torch.float32 for weight in names.values())
    (net(x, t, text=text) - x).square().mean().backward()
    assert [name for name, weight in names.items() if weight.grad is None] == []
    assert all(weight.grad is None for weight in net.parameters() if not weight.requires_grad)


@pytest.mark.parametrize("given", [("q", "v"), ["q", "v"], "('q', 'v')", "['q', 'v']", "q,v", " q, v ", "q,v,"])
def test_names_of_layers_as_the_command_line_gives_them(folder, given):
    names = trained(net_of(folder, lora_rank=2, lora_targets="('to_q',)", text_targets=given))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names} == {"to_q", "q", "v"}


def test_dropout_of_t5_is_an_option(folder):
    """Off, a training computes what a sampler does, with checkpoints, which ask for train mode, too."""
    net, numbers = net_of(folder, lora_rank=2, use_checkpoint=True), tokens_of(folder)
    expected = net.eval().states(numbers)
    assert torch.equal(net.train().states(numbers), expected) and torch.equal(net.states(numbers), expected)
    assert net.text_encoder.config.dropout_rate == 0.1  # what an export says
    dropping = net_of(folder, lora_rank=2, text_dropout=True).train()
    assert not torch.equal(dropping.states(numbers), dropping.states(numbers))
    p = {name: module.p for name, module in dropping.text_encoder.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert set(p.values()) == {0.1}


def test_scales_of_lora(folder):
    for options, scale in ({}, 4.0), ({"lora_alpha": 0.0}, 1.0), ({"lora_alpha": 4.0, "use_rslora": True}, 4 / 2 ** 0.5):
        net = net_of(folder, lora_rank=2, **options)
        assert net.transformer.proj_out.scaling["default"] == pytest.approx(scale)
        assert net.text_encoder.encoder.block[0].layer[0].SelfAttention.q.scaling["default"] == pytest.approx(scale)


@pytest.mark.parametrize("name,bound", [("bfloat16", 0.05), ("float16", 0.01)])
def test_frozen_weights_in_lower_precision(folder, name, bound):
    """They compute without autocast, and nearly the same."""
    x, t, numbers = inputs(folder)
    net, full = net_of(folder, lora_rank=2, base_dtype=name).eval(), net_of(folder, lora_rank=2).eval()
    frozen = {weight.dtype for each, weight in net.named_parameters() if not weight.requires_grad and ".wo." not in each}
    assert frozen == {getattr(torch, name)}
    with torch.no_grad():
        plain = full.states(numbers)
        for each in (net, backbones.lower(net_of(folder, lora_rank=2), getattr(torch, name)).eval()):
            given, expected = each(x, t, text=numbers), full(x, t, text=numbers)
            assert given.dtype == torch.float32
            assert 0 < (given - expected).abs().max() < bound * expected.abs().max()
        with torch.autocast("cpu", dtype=getattr(torch, name)):
            apart = (full.states(numbers) - plain).abs().max()
    assert (apart == 0) == (name == "float16")  # no autocast to float16 in T5
    wo = each.text_encoder.encoder.block[0].layer[1].DenseReluDense.wo  # overflows in float16
    assert wo.weight.dtype == (torch.float32 if name == "float16" else torch.bfloat16)


def test_another_size(folder, tmp_path):
    """The position embedding is that which diffusers makes for it, and the folder that is written says so."""
    from diffusers import PixArtTransformer2DModel
    with pytest.raises(ValueError, match="sample_size is 64.*trained at sample_size 8.*any_size=True"):
        backbones.get(name="pixart", path=str(folder))
    net = backbones.get(name="pixart", path=str(folder), sample_size=16, any_size=True, lora_rank=0).eval()
    net.transformer.save_pretrained(tmp_path)
    x, states = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 16)
    with torch.no_grad():
        again = PixArtTransformer2DModel.from_pretrained(tmp_path).eval()
        expected = again(x, encoder_hidden_states=states, timestep=torch.tensor([7.0])).sample[:, :4]
        assert torch.allclose(net(x, torch.tensor([7.0]), text=states), expected, atol=1e-6)


def test_micro_conditions(tmp_path):
    """Transformers that are told the size of images are told it in pixels."""
    folder = tiny_pixart.save(tmp_path / "pixart", micro_conditions=True)
    net = net_of(folder, lora_rank=2, train_text_encoder=False).eval()
    x, t, states = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 16)
    with torch.no_grad():
        for pixels, same in (16, True), (128, False):
            given = {"resolution": torch.full((2, 2), float(pixels)), "aspect_ratio": torch.ones(2, 1)}
            expected = net.transformer(x, encoder_hidden_states=states, timestep=t, added_cond_kwargs=given).sample[:, :4]
            assert torch.allclose(net(x, t, text=states), expected, atol=1e-6) is same
    assert PixArt(net.transformer).downsample == 8


def test_options_that_do_not_fit(folder):
    for options, message in [
            (dict(path=""), "config.nnet.path is missing"), (dict(in_channels=3), "in_channels is 3.*takes 4 channels and gives 8"),
            (dict(sample_size=9, any_size=True), "multiple of 2"),
            (dict(lora_targets="all"), "lora_targets is 'all'; known: medart"),
            (dict(lora_targets=("to_z",)), "lora_targets=.*to_z"), (dict(text_targets=("z",)), "text_targets=.*z"),
            *((dict(text_targets=empty), "text_targets is empty") for empty in ((), "()", "", ",")),
            *((dict(text_targets=odd), "text_targets is .*such as 'q,v'") for odd in ("('q'", "(1,)", "q", "('q')")),
            (dict(base_dtype="bf16"), "base_dtype is 'bf16'; known: '', 'bf"),
            (dict(lora_rank=-1), "lora_rank is -1")]:
        with pytest.raises(ValueError, match=message):
            backbones.get(**{"name": "pixart", "path": str(folder), "sample_size": 8, **options})
    with pytest.raises(ValueError, match="holds AutoencoderKL, not PixArtTransformer2DModel"):
        backbones.get(name="pixart", path=str(folder / "vae"), sample_size=8)
    with pytest.raises(FileNotFoundError, match="no transformer in"):
        backbones.get(name="pixart", path=str(folder / "scheduler"), sample_size=8)


def test_folders_under_the_class_s_old_name(folder, tmp_path):
    """Published transformers say Transformer2DModel, with options that diffusers has since dropped."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    config = json.loads((old / "transformer" / "config.json").read_text())
    dropped = {"_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None,
               "only_cross_attention": False, "use_linear_projection": False}
    (old / "transformer" / "config.json").write_text(json.dumps(config | dropped))
    x, t, numbers = inputs(folder)
    with torch.no_grad():
        given, expected = (net_of(each, lora_rank=0).eval()(x, t, text=numbers) for each in (old, folder))
    assert torch.equal(given, expected)


def test_weights_of_another_rank_say_which(folder):
    net, other = net_of(folder, lora_rank=4), net_of(folder, lora_rank=8, text_targets="all")
    with pytest.raises(ValueError, match=r"(?s)--config.nnet.lora_rank=8.*--config.nnet.text_targets=all"):
        backbones.load(net, other.state_dict())


@pytest.fixture
def config(folder):
    from configs.common import d
    options = dict(name="pixart", path=str(folder), sample_size=8, in_channels=4, lora_rank=2, train_text_encoder=True)
    return d(nnet=d(**options), schedule=d(name="linear"), denoiser=d(predicts="eps", clip=False),
             codec=d(name="kl", path="", subfolder="vae", scale_factor=0.0),
             encoder=d(name="t5", path="", subfolder="text_encoder", max_length=WINDOW),
             train=d(mode="cond", p_uncond=0.1), sample=d(algorithm="dpmpp_2m", sample_steps=5, spacing="linspace", guidance=4.5))


def test_one_path_stands_for_all_parts(folder, config):
    """Texts come as numbers, or as states of a frozen T5 without any at padding; the network gives the same noise from both."""
    assert stable_diffusion.part(config, "encoder") == dict(name="tokens", path=str(folder), subfolder="tokenizer",
                                                            max_length=WINDOW, lower_case=True)
    tokens, codec, net = pipeline.text_encoder(config), pipeline.image_codec(config), pipeline.build_net(config, []).eval()
    stable_diffusion.check_fit(net, codec, tokens)
    assert pipeline.latent_shape(config.nnet) == (4, 8, 8) and codec.image_shape((4, 8, 8)) == (3, 16, 16)
    assert pipeline.parameters(net)["transformer"]["trainable"] > 0 < pipeline.parameters(net)["text_encoder"]["trainable"]
    config.nnet.train_text_encoder = False
    assert stable_diffusion.part(config, "encoder") == dict(name="t5", path=str(folder), subfolder="text_encoder",
                                                            max_length=WINDOW, lower_case=True, zero_padding=True)
    states, frozen = pipeline.text_encoder(config), pipeline.build_net(config, []).eval()
    stable_diffusion.check_fit(frozen, codec, states)
    x, t, _ = inputs(folder)
    with torch.no_grad():
        assert torch.allclose(frozen(x, t, text=states.encode(TEXTS)), net(x, t, text=tokens.encode(TEXTS)), atol=1e-6)
    assert torch.equal(states.encode(["A RED lesion"]), states.encode(["a red lesion"]))
    assert tokens.cut(["a " * 40]).startswith("1 of 1 texts exceed the window of 12 tokens")
    plain = encoders.get(**stable_diffusion.part(config, "encoder") | {"zero_padding": False})
    with pytest.raises(ValueError, match="padding by states that are 0.*zero_padding=True"):
        stable_diffusion.check_fit(frozen, codec, plain)


def test_parts_that_do_not_belong_together(config, tmp_path):
    net, codec, tokens = pipeline.build_net(config, []), pipeline.image_codec(config), pipeline.text_encoder(config)
    other = tiny_pixart.save(tmp_path / "other", text_width=8, text_heads=1, words=[f"word{n}" for n in range(50)])
    config.encoder.path = str(other)
    with pytest.raises(ValueError, match="tokenizer knows 148 tokens.*text encoder of config.nnet.path 112"):
        stable_diffusion.check_fit(net, codec, pipeline.text_encoder(config))
    config.nnet.train_text_encoder = False
    with pytest.raises(ValueError, match="transformer of config.nnet.path attends to states of width 16, the text encoder gives 8"):
        stable_diffusion.check_fit(pipeline.build_net(config, []), codec, pipeline.text_encoder(config))
    codec.channels = 3
    with pytest.raises(ValueError, match="takes latents of 4 channels, the codec gives 3"):
        stable_diffusion.check_fit(net, codec, tokens)


def test_the_scheduler_and_the_config_must_agree(config, folder, tmp_path):
    stable_diffusion.check(config)
    for section, key, value, message in [
            ("schedule", "name", "cosine", "beta_schedule=linear.*--config.schedule.name=linear"), ("denoiser", "predicts", "v", "predict epsilon"),
            ("denoiser", "learned_var", True, "learned_var is True.*set it to False")]:
        wrong = copy.deepcopy(config)
        with wrong.unlocked():
            wrong[section][key] = value
        with pytest.raises(ValueError, match=message):
            stable_diffusion.check(wrong)
    for part in ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
        lacking = tmp_path / part
        shutil.copytree(folder, lacking, ignore=shutil.ignore_patterns(part))
        config.nnet.path = str(lacking)
        with pytest.raises(FileNotFoundError, match=f"lacks {part}/: a PixArt-alpha pipeline has transformer/"):
            stable_diffusion.check(config)
    config.nnet.path = ""
    with pytest.raises(ValueError, match="config.nnet.path is missing.*PixArt-XL-2-512x512"):
        stable_diffusion.check(config)


def test_weights_that_are_not_all_of_the_network(config, caplog):
    """LoRA without T5 leaves T5 as published, which is said; what contradicts the network is an error."""
    def lora(net):
        return {name: weight.detach() + 1 for name, weight in net.named_parameters() if weight.requires_grad}

    net = pipeline.build_net(config, [])
    of_transformer = {name: weight for name, weight in lora(net).items() if name.startswith("transformer.")}
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    pipeline.start_from(net, of_transformer)
    assert "no LoRA of text_encoder, which stays as it was published" in caplog.text
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name] + (name in of_transformer))
    whole = net_of(config.nnet.path, lora_rank=0)
    assert "text_encoder.encoder.embed_tokens.weight" not in whole.state_dict()
    pipeline.start_from(whole, {name: weight + 1 for name, weight in whole.state_dict().items()})
    assert whole.text_encoder.encoder.embed_tokens.weight is whole.text_encoder.shared.weight
    with pytest.raises(ValueError, match="lora_rank is 2, but these weights are those of a whole network.*lora_rank=0"):
        pipeline.start_from(net, whole.state_dict())
    with pytest.raises(ValueError, match="lora_rank is 0, but these weights are those of LoRA.*lora_rank=2"):
        pipeline.start_from(whole, lora(net))
    with pytest.raises(ValueError, match="train_text_encoder=True"):
        pipeline.start_from(net_of(config.nnet.path, lora_rank=2, train_text_encoder=False), lora(net))
    with pytest.raises(ValueError, match="--config.nnet.lora_rank=4"):
        pipeline.start_from(net, lora(net_of(config.nnet.path, lora_rank=4)))


def test_lora_counts_as_it_did(config):
    said = {"lora_rank": 2, "lora_alpha": 8.0, "use_rslora": False, "use_dora": False}
    stable_diffusion.check_adapter(config, said)
    stable_diffusion.check_adapter(config, {})
    with config.unlocked():
        config.nnet.lora_alpha = 0.0
    with pytest.raises(ValueError, match="with lora_alpha=8.0; here config.nnet has lora_alpha=2.*--config.nnet.lora_alpha=8.0"):
        stable_diffusion.check_adapter(config, said)
    config.nnet.lora_alpha = 8.0
    with pytest.raises(ValueError, match="--config.nnet.lora_rank=4 --config.nnet.use_dora=True"):
        stable_diffusion.check_adapter(config, {**said, "lora_rank": 4, "use_dora": True})
