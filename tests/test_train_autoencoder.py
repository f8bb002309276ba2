"""Training a KL autoencoder: the parts of its loss, and the scripts through their real command line."""

import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from configs import folder256_autoencoder
from libs import codecs, data, engine
from libs.codecs import training
from libs.codecs.base import Codec

TINY = dict(latent_channels=2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            mid_block_add_attention=False)
OPTIONS = ("--config=configs/phantom64_autoencoder.py", "--config.nnet.block_out_channels=(8,8)",
           "--config.nnet.norm_num_groups=4", "--config.dataset.resolution=32", "--config.dataset.size=24",
           "--config.train.batch_size=4", "--config.train.n_steps=4", "--config.lr_scheduler.warmup_steps=1",
           "--config.train.log_interval=1", "--config.train.save_interval=2", "--config.train.validation_interval=2",
           "--config.train.eval_interval=2", "--config.train.preview_interval=4", "--config.train.validation_size=10",
           "--config.train.adversarial_weight=0.1", "--config.train.adversarial_start=2",
           "--config.train.adversarial_channels=8", "--config.train.perceptual_weight=0.1")


@pytest.fixture
def trainee():
    torch.manual_seed(0)
    return training.Trainee(training.build(**TINY), training.PatchDiscriminator(3, 8))


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory):
    """Random weights under torchvision's names, of the layers that are used and one that is not."""
    from torchvision.models import vgg16
    torch.manual_seed(0)
    weights = {name: value for name, value in vgg16(weights=None, init_weights=False).state_dict().items()
               if name.startswith("features") or name == "classifier.6.bias"}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """A run of four steps with a discriminator, heard from step 2 on; VGG-16's weights are not at hand."""
    folder = tmp_path_factory.mktemp("run")
    done = script("train_autoencoder.py", *OPTIONS, f"--workdir={folder}", env={"TORCH_HOME": str(folder)})
    return folder, done


def gradients(module):
    """The largest gradient of each weight; biases aside, for which real and fake may cancel."""
    return [0.0 if p.grad is None else p.grad.abs().max().item() for p in module.parameters() if p.ndim > 1]


def test_the_two_parts_do_not_disturb_each_other(trainee):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    trainee(x)["judged"].mean().backward()
    assert max(gradients(trainee.discriminator)) == 0 and min(gradients(trainee.autoencoder.decoder)) > 0
    trainee.zero_grad()
    found = trainee(x)
    training.hinge(found["real"], found["fake"]).backward()
    assert max(gradients(trainee.autoencoder)) == 0 and min(gradients(trainee.discriminator)) > 0
    assert torch.equal(found["judged"], found["fake"]), "both judge the same reconstruction"


def test_each_term_improves_its_own_part(trainee):
    """One term after the other on eight smooth images: L1, the discriminator's, the generator's."""
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    optimizer = torch.optim.Adam(trainee.parameters(), lr=1e-2)
    terms = {"l1": lambda found: (found["image"] - x).abs().mean(), "generator": lambda found: -found["judged"].mean(),
             "discriminator": lambda found: training.hinge(found["real"], found["fake"])}
    for name, steps in (("l1", 40), ("discriminator", 20), ("generator", 10)):
        history = []
        for _ in range(steps):
            loss = terms[name](trainee(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        assert history[-1] < 0.7 * history[0], name
    optimizer.zero_grad()
    sum(term(trainee(x)) for term in terms.values()).backward()
    assert all(p.grad is not None for p in trainee.parameters()), "every parameter is used at every step"


def test_a_sample_in_training_the_mean_otherwise(trainee):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert not torch.equal(trainee.train()(x)["image"], trainee(x)["image"])
        assert torch.equal(trainee.eval()(x)["image"], trainee(x)["image"])


def test_divergence_and_hinge_against_their_definitions():
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * logvar).exp()),
                                              torch.distributions.Normal(0.0, 1.0)).mean()
    assert training.divergence(mean, logvar) == pytest.approx(exact.item(), rel=1e-5)
    assert training.hinge(torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.5])) == pytest.approx(0.5 * (0.5 + 0.75))


def test_perceptual_loss(vgg16_file):
    loss = training.perceptual(str(vgg16_file))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    noisy = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    assert loss(x, x) == 0 and loss(x, noisy).item() > loss(x, 0.9 * x).item() > 0
    loss(noisy, x).backward()
    assert noisy.grad.abs().amax(dim=(1, 2, 3)).min() > 0 and not any(p.requires_grad for p in loss.parameters())
    grey = x[:, :1]
    assert training.perceptual(str(vgg16_file), channels=1)(grey, grey * 0.5) > 0


def test_perceptual_weights_that_are_missing_or_wrong(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert training.perceptual() is None
    assert len(caplog.records) == 1 and "vgg16-397923af.pth" in caplog.text
    with pytest.raises(FileNotFoundError, match="no_such.pth"):
        training.perceptual(str(tmp_path / "no_such.pth"))
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold weights of torchvision's vgg16"):
        training.perceptual(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="not 4"):
        training.perceptual(channels=4)


def test_fidelity_of_a_known_error():
    class Offset(Codec):
        def moments(self, x):
            return torch.cat([x, x], dim=1)

        def decode(self, z):
            return z + 0.02

    error, psnr = training.fidelity(Offset(), torch.zeros(2, 3, 8, 8)).T
    assert error.tolist() == pytest.approx([0.02] * 2) and psnr.tolist() == pytest.approx([40.0] * 2, abs=1e-3)


def test_spread_of_latents_is_that_of_all_samples():
    class Normal(Codec):
        channels = 2

        def moments(self, x):
            logvar = torch.zeros_like(x) + torch.tensor([0.0, 2.0])[:, None, None]
            return torch.cat([x, logvar], dim=1)

    codec, x = Normal(), 3 * torch.randn(50, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1

    def sums(*parts):
        batches = ({"image": x[part], "index": torch.tensor(part)} for part in parts)
        return torch.cat([codecs.latent_sums(codec, [batch], seed=7) for batch in batches])

    indices = list(range(50))
    whole, parted = codecs.Spread.of(sums(indices)), codecs.Spread.of(sums(indices[30:], indices[:30]))
    assert whole.scale_factor == pytest.approx(parted.scale_factor, rel=1e-9) and whole.count == 50 * 64
    assert whole.channel_std.tolist() == pytest.approx([10 ** 0.5, (9 + np.e ** 2) ** 0.5], rel=0.03)
    assert whole.channel_mean.tolist() == pytest.approx([1, 1], abs=0.2)
    assert whole.std == pytest.approx(
        (whole.channel_std.square().mean() + whole.channel_mean.var(correction=0)).sqrt().item(), rel=1e-6)
    with pytest.raises(ValueError, match="nothing to scale"):
        codecs.Spread.of(torch.tensor([[4.0, 8.0, 8.0, 16.0, 16.0]]))


def test_latents_become_double_on_the_cpu():
    """Not every accelerator has float64."""
    class Watch(TorchFunctionMode):
        fetched, made_double = [], []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if function is torch.Tensor.cpu:
                self.fetched.append(found)
            if function is torch.Tensor.double:
                self.made_double.append(args[0])
            return found

    batch = {"image": torch.zeros(1, 3, 4, 4), "index": torch.tensor([0])}
    with Watch() as watch:
        codecs.latent_sums(codecs.get(name="pixels"), [batch], seed=0)
    assert watch.made_double and all(any(x is y for y in watch.fetched) for x in watch.made_double)


@pytest.mark.parametrize("levels", [2, 3])
def test_images_too_small_to_be_judged(levels):
    judge, least = training.PatchDiscriminator(3, 8, levels), 3 * 2 ** levels
    assert judge(torch.zeros(1, 3, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"at least {least} pixels a side, not {least - 1}: .*adversarial_weight=0"):
        judge(torch.zeros(1, 3, least + 8, least - 1))


def test_what_is_trained():
    options = dict(folder256_autoencoder.get_config().nnet)
    with torch.device("meta"):
        new = training.build(**{**options, "path": ""})
    assert sum(p.numel() for p in new.parameters()) == 83_653_863  # Stable Diffusion's autoencoder
    with pytest.raises(ValueError, match="trains 'kl'"):
        training.build("uvit")
    with pytest.raises(ValueError, match="adversarial_channels=12"):
        training.PatchDiscriminator(3, 12)


def test_a_run_writes_an_autoencoder_that_opens(trained):
    folder, done = trained
    assert done.stderr.count("training without perceptual loss") == 1
    path, = re.findall(r"--config\.codec\.path=(\S+)", done.stdout)
    codec = codecs.get(name="kl", path=path)
    assert codec.latent_shape((3, 32, 32)) == (4, 16, 16) and f"scale factor {codec.scale_factor:.5f}" in done.stdout
    x = torch.stack([data.get(name="phantoms", resolution=32, size=24)[i]["image"] for i in range(24)])
    assert codec.encode(x).std() == pytest.approx(1, abs=0.02)
    z = codec.encode(x[:2]).requires_grad_()
    assert torch.autograd.grad(codec.decode(z).sum(), z)[0].abs().amax(dim=(1, 2, 3)).min() > 0
    assert not [name for name in os.listdir(folder) if name.startswith((".staging", ".old"))]

    lines = engine.read_metrics(folder / "metrics.jsonl")
    best = min((line for line in lines if line["kind"] == "eval"), key=lambda line: line["l1"])
    assert f"step {best['step']}, PSNR {best['psnr']:.2f} dB and L1 {best['l1']:.4f} on 10 images of 'test'" in done.stdout
    weights = engine.load_weights(folder / "ckpts" / f"{best['step']}.ckpt")[0]
    for name, value in codec.net.state_dict().items():
        assert torch.equal(value, weights[f"autoencoder.{name}"])
    train = [line for line in lines if line["kind"] == "train"]
    for line in train:  # the discriminator is heard from the third step on
        heard = 0.1 * line["generator"] if line["step"] > 2 else 0.0
        assert line["loss"] == pytest.approx(line["l1"] + 1e-4 * line["kl"] + heard + line["discriminator"], rel=1e-5)
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4]
    assert np.asarray(Image.open(folder / "samples" / "4.png")).shape == (2 * 34 + 2, 8 * 34 + 2, 3)


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(inside, trained, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(trained[0], again)
    shutil.rmtree(again / "ckpts" / "4.ckpt")
    shutil.rmtree(again / "autoencoder")
    inside("train_autoencoder.py", *OPTIONS, f"--workdir={again}", env={"TORCH_HOME": str(again)})
    mine, its = ([line | {"images_per_second": 0} for line in engine.read_metrics(folder / "metrics.jsonl")]
                 for folder in (again, trained[0]))
    assert mine == its
    mine, its = (load_file(folder / "autoencoder" / "diffusion_pytorch_model.safetensors") for folder in (again, trained[0]))
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_two_processes_fine_tune_and_the_scale_is_measured_again(script, inside, trained, tmp_path):
    """Every parameter is used, so the processes need no search for unused ones; the script agrees with the run."""
    done = script("train_autoencoder.py", *OPTIONS, "--config.train.n_steps=2", "--config.train.perceptual_weight=0.0",
                  f"--config.nnet.path={trained[0]}/autoencoder", f"--workdir={tmp_path}", processes=2)
    assert json.loads((tmp_path / "run.json").read_text())["sessions"][0]["processes"] == 2
    printed, = re.findall(r"scale factor ([\d.]+)", done.stdout)
    (tmp_path / "config.py").write_text(
        "from configs.common import d\ndef get_config():\n"
        f"    return d(seed=1234, codec=d(name='kl', path='{tmp_path}/autoencoder', scale_factor=0.0),\n"
        "             dataset=d(name='phantoms', resolution=32, size=24))\n")
    measured = inside("scripts/compute_scale_factor.py", f"--config={tmp_path}/config.py").stdout
    assert f"--config.codec.scale_factor={printed}" in measured and f"(now {printed})" in measured
    assert measured.count("channel") == 4 and "24 images of phantoms" in measured
