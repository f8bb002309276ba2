"""Guidance by config: the time a classifier is told, its classes, what is refused; encoding and decoding through a pipeline."""

import math

import pytest
import torch
from ml_collections import ConfigDict

from configs.common import gradient
from libs import codecs, diffusion, pipeline
from libs.pipeline import steering

LINEAR, COSINE, VPSDE = (diffusion.schedule(name) for name in ("linear", "cosine", "vpsde"))


class Told(torch.nn.Module):
    """A classifier that remembers what time it was told; its logits are the image's mean and its opposite."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, t):
        self.calls.append(t[0].item())
        mean = self.scale * x.flatten(1).mean(1)
        return torch.stack([mean, -mean], 1)


def classifier(schedule=LINEAR, *, noised=True, classes=("a", "b"), shape=(1, 8, 8)):
    return pipeline.NoisyClassifier(Told(), schedule, classes=classes, shape=shape, noised=noised)


def test_classifier_and_denoiser_are_told_the_same_mapped_time():
    one, x = classifier(), torch.randn(2, 1, 8, 8)
    for t in LINEAR.times("ddim250").tolist()[:-1]:
        one.logits(x, t, LINEAR)
        assert one.net.calls[-1] == pytest.approx(LINEAR.network_time(t), abs=1e-3)
    assert one.net.calls[:2] == [996.0, 992.0] and one.net.calls[-1] == 0.0


def test_legacy_steps_number_the_kept_steps_as_mgdm_trained_its_classifiers():
    one, x = classifier(), torch.randn(2, 1, 8, 8)
    for t in LINEAR.times("ddim250").tolist()[:-1]:
        one.logits(x, t, LINEAR, legacy_steps=250)
    assert one.net.calls == pytest.approx(list(range(249, -1, -1)), abs=1e-3)


@pytest.mark.parametrize("of_denoiser", [COSINE, VPSDE])
def test_another_schedule_is_translated_by_its_noise_level(of_denoiser):
    one = classifier()
    for t in (0.05, 0.3, 0.6, 0.9):
        told = (one.network_time(t, of_denoiser) + 1) / 1000
        assert LINEAR.lam(told) == pytest.approx(of_denoiser.lam(t), abs=1e-4)
    assert one.network_time(1.0, COSINE) == LINEAR.network_time(1.0), "beyond the last step there is no other"


def test_a_classifier_of_clean_images_is_always_told_so():
    one = classifier(noised=False)
    assert {one.network_time(t, LINEAR) for t in (0.0, 0.1, 0.9)} == {0.0}
    assert classifier().network_time(0.0, LINEAR) == 0.0


def test_classes_in_another_order_are_renumbered_and_others_refused():
    one, x = classifier(classes=("b", "a")), torch.randn(3, 1, 8, 8)
    turned = one.in_order_of(["a", "b"])
    torch.testing.assert_close(turned.logits(x, 0.5, LINEAR), one.logits(x, 0.5, LINEAR).flip(1))
    bare = classifier(classes=2)
    assert one.in_order_of(["b", "a"]) is one and bare.in_order_of(["x", "y"]) is bare and bare.classes == ["0", "1"]
    assert classifier(classes=("1", "0")).in_order_of(["0", "1"]).classes == ["0", "1"], "names, though they are digits"
    with pytest.raises(ValueError, match="tells"):
        classifier(classes=("2", "5")).in_order_of(["0", "1"])
    with pytest.raises(ValueError, match=r"tells \['b', 'a'\] apart, the network makes \['a', 'c'\]"):
        one.in_order_of(["a", "c"])


@pytest.mark.parametrize("own, message", [
    (dict(measure="entropi", scale=1.0), "Did you mean 'entropy'"), (dict(measure="entropy"), "both are needed"),
    (dict(scale=1.0), "both are needed"), (dict(measure="entropy", scale=-1.0), "must not be negative"),
    (dict(measure="entropy", scale=1.0, first=0.2, last=0.5), "0 <= last=0.5 <= first=0.2"),
    (dict(measure="entropy", scale=1.0, profile="lat"), "Did you mean 'late'"), (dict(on="x_0"), "known: x_t, x0")])
def test_sections_that_cannot_be(own, message):
    section = gradient()
    section.update(own)
    with pytest.raises(ValueError, match=message):
        steering.check(section, classifier(), classes=["a", "b"], shape=(1, 8, 8))


def test_measures_by_the_original_s_spelling():
    found = [pipeline.measure_name(name) for name in ("Entropy", "Margin", "LeastConf", "classifier", "entropy", "")]
    assert found == ["entropy", "margin", "least_confidence", "log_probability", "entropy", ""]


def test_legacy_steps_need_steps():
    with pytest.raises(ValueError, match="numbers the steps of a discrete schedule"):
        classifier().logits(torch.randn(1, 1, 8, 8), 0.5, VPSDE, legacy_steps=250)


def test_guidance_without_a_classifier_or_with_one_of_other_images():
    section = gradient(measure="log_probability", scale=1.0)
    with pytest.raises(ValueError, match="give the run folder of one"):
        steering.check(section, None, classes=["a"], shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"looks at images \(1, 8, 8\).*denoises \(3, 8, 8\)"):
        steering.check(section, classifier(), classes=["a", "b"], shape=(3, 8, 8))
    with pytest.raises(ValueError, match="needs a network that is asked for classes"):
        steering.check(section, classifier(), classes=[], shape=(1, 8, 8))


class Gaussian(torch.nn.Module):
    """The exact noise prediction for data N(mean of the class, 0.25^2)."""

    takes = ("label",)
    means = torch.tensor([-0.5, 0.5, 0.0])

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, x, t, label):
        self.calls += 1
        n = ((t.double() + 1) / 1000)
        alpha, sigma = (c.float().reshape(-1, 1, 1, 1) for c in (LINEAR.alpha(n), LINEAR.sigma(n)))
        mean = self.means[label].reshape(-1, 1, 1, 1)
        return sigma * (x - alpha * mean) / (0.0625 * alpha ** 2 + sigma ** 2) + self.zero


def bridge(*, section=None, guide=None, steps=50, guidance=1.0, spacing="stride", clip=False, algorithm="ddim"):
    config = ConfigDict(dict(nnet=dict(image_size=8, in_channels=1), denoiser=dict(predicts="eps", clip=clip),
                             sample=dict(algorithm=algorithm, sample_steps=steps, spacing=spacing, guidance=guidance)))
    config.sample.gradient = section or gradient()
    return pipeline.Pipeline(Gaussian(), config, codec=codecs.get("pixels"), schedule=LINEAR, null={"label": torch.tensor(2)},
                             classifier=guide)


def images(n=16):
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return 0.25 * noise.clamp(-1.9, 1.9) - 0.5


@pytest.mark.parametrize("steps, error", [(50, 2.9e-3), (250, 1.3e-4)])
@pytest.mark.parametrize("to_noise", [True, False])
def test_a_bridge_onto_the_same_class_comes_back_and_makes_2t_calls(steps, error, to_noise):
    sampler, label = bridge(steps=steps), torch.zeros(16, dtype=torch.int64)
    z = sampler.encode(images(), {"label": label}, to_noise=to_noise)
    assert sampler.net.calls == steps - (not to_noise)
    back = sampler.decode(z, {"label": label})
    assert sampler.net.calls == 2 * steps - (not to_noise)
    assert (back - images()).square().mean() < error


def test_a_bridge_to_another_class_moves_the_mean_and_keeps_the_rest():
    sampler = bridge(steps=250)
    z = sampler.encode(images(), {"label": torch.zeros(16, dtype=torch.int64)})
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.1, "latents of the right class are standard normal"
    moved = sampler.decode(z, {"label": torch.ones(16, dtype=torch.int64)})
    assert moved.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(torch.stack([moved.flatten(), images().flatten()]))[0, 1] > 0.97


def test_no_classifier_work_at_scale_zero_and_one_pass_a_step_otherwise():
    label, guide = torch.zeros(4, dtype=torch.int64), classifier()
    off = bridge(guide=guide)
    off.decode(off.encode(images(4), {"label": label}), {"label": label})
    assert guide.net.calls == [] and off.net.calls == 100 and not off.guides
    on = bridge(guide=guide, section=gradient(measure="entropy", scale=2.0))
    z = on.encode(images(4), {"label": label})
    assert guide.net.calls == [], "encoding is never guided"
    on.decode(z, {"label": label})
    assert len(guide.net.calls) == 50 and guide.net.calls == [20.0 * k for k in range(49, -1, -1)]
    assert "gradient of entropy, scale 2" in on.describe() and "gradient" not in off.describe()


def test_guidance_moves_what_it_measures_in_its_window_only():
    label = torch.zeros(16, dtype=torch.int64)

    def mean(**own):
        guide, section = classifier(), gradient(measure="log_probability", scale=20.0)
        section.update(own)
        sampler = bridge(guide=guide, section=section if own else None)
        found = sampler({"label": label}, seed=0, indices=range(16))
        return found.mean().item(), len(guide.net.calls)

    plain, none = mean()
    pushed, calls = mean(on="x_t")
    assert none == 0 and calls == 50 and pushed > plain + 0.05, "label 0 is likelier where the mean is larger"
    through, _ = mean(on="x0")
    assert plain + 0.01 < through < pushed, "at the estimate, which the gradient reaches through the network"
    less, half = mean(first=0.5)
    assert half == 25 and plain < less
    late, early = mean(profile="late")[0], mean(profile="early")[0]
    assert plain < min(late, early) and max(late, early) < pushed
    assert abs(mean(clip_norm=1e-6)[0] - plain) < 1e-3


def test_ancestral_sampling_takes_both_guidances():
    """use_ddim False with a gradient, which the original cannot; the mean moves by variance times gradient."""
    label, means = torch.zeros(64, dtype=torch.int64), []
    for scale, guidance in ((0.0, 1.0), (20.0, 1.0), (20.0, 2.0)):
        section = gradient(measure="log_probability", scale=scale) if scale else None
        sampler = bridge(guide=classifier(), section=section, algorithm="ddpm", guidance=guidance, steps=100, spacing="respaced")
        found = sampler({"label": label}, seed=0, indices=range(64))
        assert found.isfinite().all() and len(sampler.classifier.net.calls) == (100 if scale else 0)
        means.append(found.mean().item())
    assert means[0] == pytest.approx(-0.5, abs=0.02) and means[1] > means[0] + 0.05
    assert means[2] < means[1] - 0.1, "classifier-free guidance pulls on, away from the empty class's mean of 0"


def test_the_generator_s_images_do_not_depend_on_their_batch():
    sampler = bridge(guide=classifier(), section=gradient(measure="margin", scale=3.0))
    label = torch.tensor([0, 1, 0, 1])
    together = sampler({"label": label}, seed=3, indices=range(4))
    alone = torch.cat([sampler({"label": label[i:i + 1]}, seed=3, indices=[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_stride_spacing_is_the_ddim_text():
    assert torch.equal(LINEAR.times(250, spacing="stride"), LINEAR.times("ddim250"))
    assert LINEAR.times(250, spacing="stride")[0] == 0.997 and LINEAR.times(250)[0] == 1.0
    with pytest.raises(ValueError, match="no whole stride keeps 240"):
        LINEAR.times(240, spacing="stride")
    assert math.isclose(LINEAR.times(50, spacing="stride")[-2], 0.001)


def test_published_weights_of_a_classifier_need_no_config_of_their_own(tmp_path):
    from libs import backbones, evaluation
    torch.manual_seed(0)
    net = backbones.get("adm_classifier", image_size=16, model_channels=32, out_channels=3, num_res_blocks=2, channel_mult=(1, 2),
                        attention_resolutions=(2,), use_scale_shift_norm=True, resblock_updown=True)
    torch.save(net.state_dict(), tmp_path / "16x16_classifier.pt")
    config = ConfigDict(dict(schedule=dict(name="cosine", steps=1000), nnet=dict(image_size=16)))
    opened = evaluation.open_classifier(tmp_path / "16x16_classifier.pt", config)
    x, t = torch.randn(2, 3, 16, 16), torch.full((2,), COSINE.network_time(0.3))
    torch.testing.assert_close(opened.logits(x, 0.3, COSINE), net.eval()(x, t))
    assert opened.shape == (3, 16, 16) and opened.in_order_of(["x", "y", "z"]) is opened
    (tmp_path / "run" / "ckpts").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"nnet": {"name": "uvit"}}')
    torch.save(net.state_dict(), tmp_path / "run" / "ckpts" / "weights.pt")
    with pytest.raises(ValueError, match="is a run of 'uvit'"):
        evaluation.open_classifier(tmp_path / "run" / "ckpts" / "weights.pt", config)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no weights of adm_classifier: a"):
        evaluation.open_classifier(tmp_path / "other.pt", config)


def test_weights_rounded_once_give_what_autocast_gives():
    from libs import backbones
    nnet = dict(name="adm_unet", image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
                attention_resolutions=(2,), channel_mult=(1, 2), num_classes=2, num_head_channels=32, use_scale_shift_norm=True)
    config = ConfigDict(dict(train=dict(mode="cond"), nnet=nnet, denoiser=dict(predicts="eps", learned_var=True, clip=True),
                             schedule=dict(name="linear", steps=1000), codec=dict(name="pixels"),
                             sample=dict(algorithm="ddim", sample_steps=4, guidance=2.0)))
    torch.manual_seed(0)
    net = backbones.get(**nnet)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    found = {}
    for precision in ("no", "bf16"):
        sampler = pipeline.load(config, {k: v.clone() for k, v in net.state_dict().items()}, classes=["a", "b"], device="cpu",
                                precision=precision)
        with torch.autocast("cpu", torch.bfloat16):
            found[precision] = sampler({"label": torch.tensor([0, 1, 0])}, seed=1, indices=range(3))
    torch.testing.assert_close(found["no"], found["bf16"], atol=2e-2, rtol=0)
    assert sampler.net.input_blocks[0][0].weight.dtype == torch.bfloat16


class Wide(codecs.Codec):
    """Latents twice the image, spread widely: every `encode` draws others."""

    scale_factor = 2.0

    def moments(self, x):
        return torch.cat([x, torch.zeros_like(x)], dim=1)

    def decode(self, z):
        return z / self.scale_factor

    def image_shape(self, shape):
        return shape


def test_a_bridge_on_latents_draws_nothing():
    config = ConfigDict(dict(nnet=dict(image_size=8, in_channels=1), denoiser=dict(predicts="eps", clip=False),
                             sample=dict(algorithm="ddim", sample_steps=50, spacing="stride", guidance=1.0)))
    sampler = pipeline.Pipeline(Gaussian(), config, codec=Wide(), schedule=LINEAR, null={"label": torch.tensor(2)})
    x, label = images() / 2, torch.zeros(16, dtype=torch.int64)  # latents as the network expects them
    z = sampler.encode(x, {"label": label})
    assert torch.equal(z, sampler.encode(x, {"label": label}))
    assert (sampler.decode(z, {"label": label}) - x).square().mean() < 1e-3
