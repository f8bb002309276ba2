"""The KL autoencoder: numbers as published, from every place users have it, and what it says of a wrong one."""

import json
import pathlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from libs import codecs
from libs.codecs import pretrained

PARITY = pathlib.Path(__file__).parent / "parity"


@pytest.fixture(scope="module")
def published():
    """kwargs, weights under CompVis names, inputs and outputs of the original implementation."""
    with safe_open(PARITY / "autoencoder_kl.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        kwargs = json.loads(file.metadata()["kwargs"])
    weights = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return kwargs, weights, tensors


@pytest.fixture(scope="module")
def compvis_file(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("assets") / "autoencoder_kl.pth"
    torch.save(published[1], path)
    return path


@pytest.fixture(scope="module")
def folder(compvis_file, tmp_path_factory):
    """The same autoencoder as a save_pretrained folder with a scale of its own."""
    return pretrained.save(codecs.get(name="kl", path=str(compvis_file)).net, tmp_path_factory.mktemp("run") / "autoencoder",
                           scale_factor=0.5)


def agrees(codec, tensors, scale_factor):
    """Moments and decoding are those of the original, to 1e-4 of their largest magnitude."""
    moments = codec.moments(tensors["in.x"])
    decoded = codec.decode(tensors["in.z"] / scale_factor * codec.scale_factor)
    return all((mine - its).abs().max() < 1e-4 * its.abs().max()
               for mine, its in ((moments, tensors["out.moments"]), (decoded, tensors["out.decoded"])))


def test_agrees_with_the_published_implementation(published):
    kwargs, weights, tensors = published
    codec = codecs.get(name="kl", **kwargs)
    assert not agrees(codec, tensors, 0.18215)
    codec.load_state_dict(weights, strict=True)
    assert agrees(codec, tensors, 0.18215)
    again = codecs.get(name="kl", **kwargs)
    again.load_state_dict(codec.state_dict(), strict=True)
    assert again.fingerprint == codec.fingerprint
    with pytest.raises(RuntimeError, match="quant_conv"):
        codec.load_state_dict({name: value for name, value in weights.items() if name != "quant_conv.bias"}, strict=True)
    with pytest.raises(RuntimeError, match="surprise"):
        codec.load_state_dict({**weights, "surprise": torch.zeros(1)}, strict=True)


def test_every_place_gives_the_same_codec(published, compvis_file, folder, tmp_path):
    """A plain file, a whole checkpoint with prefix and discriminator, safetensors, a folder, a pipeline's `vae/`."""
    kwargs, weights, tensors = published
    inner = {f"first_stage_model.{name}": value for name, value in weights.items()}
    around = {"first_stage_model.loss.logvar": torch.zeros(1), "model.diffusion_model.out": torch.zeros(2)}
    beside = {"loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.ones(())}
    torch.save({"state_dict": inner | around}, tmp_path / "sd.ckpt")
    torch.save({"state_dict": weights | beside}, tmp_path / "vae.pt")
    save_file(inner | around, tmp_path / "sd.safetensors")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(folder)
    (tmp_path / "workdir").mkdir()
    (tmp_path / "workdir" / "config.json").write_text("{}")  # of the run, not of an autoencoder
    (tmp_path / "workdir" / "autoencoder").symlink_to(folder)
    places = {compvis_file: 0.18215, tmp_path / "sd.ckpt": 0.18215, tmp_path / "vae.pt": 0.18215, folder: 0.5,
              tmp_path / "sd.safetensors": 0.18215, tmp_path / "pipeline": 0.5, tmp_path / "workdir": 0.5}
    fingerprints = set()
    for path, scale in places.items():
        codec = codecs.get(name="kl", path=str(path))
        assert codec.scale_factor == scale and agrees(codec, tensors, 0.18215), path
        fingerprints.add(codec.fingerprint)
    coco = codecs.get(name="kl", path=str(tmp_path / "pipeline"), subfolder="vae", scale_factor=0.2301)
    assert coco.scale_factor == 0.2301
    assert len(fingerprints) == 1 and fingerprints != {codecs.get(name="kl", **kwargs).fingerprint}


def test_attention_within_levels_is_read_off_the_weights(tmp_path):
    """LDM's zoo has autoencoders with attention in the innermost levels (attn_resolutions)."""
    ddconfig = dict(double_z=True, z_channels=4, resolution=16, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 2, 1),
                    num_res_blocks=1, attn_resolutions=(4, 8), dropout=0.0)
    torch.manual_seed(0)
    built = codecs.get(name="kl", ddconfig=ddconfig)
    renamed = {}
    for name, value in built.net.state_dict().items():  # back to CompVis names, by hand
        for ours, theirs in (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                             ("mid_block.attentions.0", "mid.attn_1"), ("down_blocks", "down"), ("up_blocks.0", "up.2"),
                             ("up_blocks.1", "up.1"), ("up_blocks.2", "up.0"), ("resnets", "block"), ("attentions", "attn"),
                             ("conv_shortcut", "nin_shortcut"), ("downsamplers.0", "downsample"), ("to_out.0", "proj_out"),
                             ("upsamplers.0", "upsample"), ("conv_norm_out", "norm_out"), ("group_norm", "norm"),
                             ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
            name = name.replace(ours, theirs)
        renamed[name] = value[..., None, None] if "attn" in name and value.ndim == 2 else value
    save_file(renamed, tmp_path / "kl.safetensors")
    read = codecs.get(name="kl", path=str(tmp_path / "kl.safetensors"))
    assert read.net.config.down_block_types == built.net.config.down_block_types == (
        "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(read.moments(x), built.moments(x))
    assert torch.equal(read.decode(torch.ones(1, 4, 4, 4)), built.decode(torch.ones(1, 4, 4, 4)))


def test_a_latent_is_a_scaled_sample(folder):
    codec = codecs.get(name="kl", path=str(folder))
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    mean, logvar = codec.moments(x).chunk(2, dim=1)
    torch.manual_seed(5)
    z = codec.encode(x)
    torch.manual_seed(5)
    assert torch.allclose(z, 0.5 * (mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape)), atol=1e-6)
    assert codec.latent_shape((3, 8, 8)) == tuple(z.shape[1:]) == (4, 4, 4)
    assert codec.image_shape((4, 4, 4)) == tuple(codec.decode(z).shape[1:]) == (3, 8, 8)
    assert not codec.deterministic and not z.requires_grad and not codec.train().training


def test_log_variance_is_bounded(folder):
    codec = codecs.get(name="kl", path=str(folder))
    with torch.no_grad():
        codec.net.quant_conv.bias[4:] += torch.tensor([1e4, -1e4, 0, 0])
    logvar = codec.moments(torch.zeros(1, 3, 8, 8))[:, 4:]
    assert (logvar[:, 0] == 20).all() and (logvar[:, 1] == -30).all() and (logvar[:, 2:].abs() < 20).all()


def test_decoding_is_differentiable_in_slices_and_in_float32(folder):
    codec = codecs.get(name="kl", path=str(folder))
    sliced = codecs.get(name="kl", path=str(folder), decode_batch=2)
    z = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    seen = []
    sliced.net.decoder.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    x = sliced.decode(z)
    assert seen == [2, 2, 1] and torch.allclose(x, codec.decode(z), atol=1e-5)
    gradient, = torch.autograd.grad(x.square().sum(), z)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(z), codec.decode(z.detach())) and codec.decode(z).dtype == torch.float32
        assert torch.equal(codec.moments(x), codec.moments(x.detach()))
    assert torch.equal(codec.moments(x.bfloat16()), codec.moments(x.bfloat16().float()))


@pytest.mark.parametrize("n", [1, 3])
def test_checkpointed_decoding_keeps_less_and_has_the_same_gradient(folder, n):
    codec, z = codecs.get(name="kl", path=str(folder)), torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found, kept = [], []
    for options in ({}, {"checkpointed": True}):
        mine, sizes = z.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
            images = codec.decode(mine, **options)
        images.square().sum().backward()
        found.append((images, mine.grad))
        kept.append(sum(sizes))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)  # another batch size rounds otherwise
    assert kept[1] < kept[0] / 3 and (n == 1 or kept[1] < 10 * z.nbytes)
    with torch.no_grad():
        assert torch.allclose(codec.decode(z, checkpointed=True), found[0][0], atol=1e-5)


def test_fingerprint_is_that_of_the_moments(folder):
    codec = codecs.get(name="kl", path=str(folder))
    before = codec.fingerprint
    with torch.no_grad():
        codec.net.decoder.conv_in.weight += 1
    codec.scale_factor = 3.0
    assert codec.fingerprint == before
    with torch.no_grad():
        codec.net.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert codec.fingerprint != before


def test_images_that_do_not_fit(folder):
    codec = codecs.get(name="kl", path=str(folder))
    with pytest.raises(ValueError, match="9x8: each side must be a multiple of 2"):
        codec.moments(torch.zeros(1, 3, 9, 8))
    with pytest.raises(ValueError, match="1 channels, but the autoencoder takes 3"):
        codec.latent_shape((1, 8, 8))
    with pytest.raises(ValueError, match=r"\(N, 4, h, w\), got \(1, 3, 8, 8\)"):
        codec.decode(torch.zeros(1, 3, 8, 8))


def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="assets/stable-diffusion/README.md"):
        codecs.get(name="kl", path="assets/stable-diffusion/no_such.pth")
    with pytest.raises(OSError, match="owner/no-such.*hub.*subfolder='vae'"):
        codecs.get(name="kl", path="owner/no-such")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        codecs.get(name="kl", path=str(tmp_path))
    with pytest.raises(ValueError, match="either path or ddconfig"):
        codecs.get(name="kl")


def test_damaged_and_foreign_files_are_refused(published, folder, tmp_path):
    weights = dict(published[1])
    save_file({name: value for name, value in weights.items() if name != "decoder.conv_in.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="decoder.conv_in.bias"):
        codecs.get(name="kl", path=str(tmp_path / "a.safetensors"))
    (tmp_path / "b.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="b.pth cannot be read safely"):
        codecs.get(name="kl", path=str(tmp_path / "b.pth"))
    torch.save({"model": pathlib.PurePosixPath("x")}, tmp_path / "c.pth")  # an object, which could run code
    with pytest.raises(ValueError, match="c.pth cannot be read safely"):
        codecs.get(name="kl", path=str(tmp_path / "c.pth"))
    with pytest.raises(ValueError, match="give the folder that holds it"):
        codecs.get(name="kl", path=str(folder / "diffusion_pytorch_model.safetensors"))

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({name: value for name, value in tensors.items() if not name.startswith("quant_conv")},
              broken / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="lacks weights.*quant_conv"):
        codecs.get(name="kl", path=str(broken))


def test_latents_normalised_otherwise_are_refused(folder, tmp_path):
    """SD 3 and Flux shift their latents too; dropping that silently would be wrong."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "shift_factor": 0.0609}))
    with pytest.raises(ValueError, match="shift_factor=0.0609.*compute_scale_factor"):
        codecs.get(name="kl", path=str(tmp_path))
    assert codecs.get(name="kl", path=str(tmp_path), scale_factor=0.7).scale_factor == 0.7
    with pytest.raises(ValueError, match="scale_factor=-1.0"):
        codecs.get(name="kl", path=str(tmp_path), scale_factor=-1.0)


def test_saving_replaces_a_folder_whole(folder, tmp_path, monkeypatch):
    net = codecs.get(name="kl", path=str(folder)).net
    for scale in (0.25, 0.75):
        pretrained.save(net, tmp_path / "out", scale_factor=scale)
    assert codecs.get(name="kl", path=str(tmp_path / "out")).scale_factor == 0.75

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(net), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        pretrained.save(net, tmp_path / "out", scale_factor=0.5)
    assert codecs.get(name="kl", path=str(tmp_path / "out")).scale_factor == 0.75
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
