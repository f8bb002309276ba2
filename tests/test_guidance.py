"""Guidance by conditions and by gradients against the formulas, and that switched off it costs nothing."""
import pytest
import torch

from configs.common import d
from libs import codecs, pipeline
from libs.diffusion import Denoiser, guidance, samplers, schedule
from libs.diffusion.samplers import sample_ddim, sample_ddpm

LINEAR = schedule("linear")
COND, NULL = {"label": torch.tensor([1.0, 2.0])}, {"label": torch.tensor([0.0, 0.0])}


def conditional(denoise):
    return guidance.classifier_free(denoise, COND, NULL, 1.0)


def network(calls, learned_var=False):
    """eps = (label + 1) x / 4; the variance head repeats the label."""
    def net(x, n, label):
        calls.append(len(x))
        scale = label[:, None, None, None]
        out = (scale + 1) * x / 4
        return torch.cat([out, scale.expand_as(x)], 1) if learned_var else out
    return net


@pytest.fixture
def x():
    return torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.4, 2.5])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_classifier_free_is_the_formula_in_one_batch(x, scale, predicts):
    calls = []
    denoise = Denoiser(network(calls), LINEAR, predicts)
    on, off = denoise(x, 0.3, **COND), denoise(x, 0.3, **NULL)
    calls.clear()
    guided = guidance.classifier_free(denoise, COND, NULL, scale)(x, 0.3)
    assert calls == [4]
    torch.testing.assert_close(guided.eps, off.eps + scale * (on.eps - off.eps))
    torch.testing.assert_close(guided.x0, off.x0 + scale * (on.x0 - off.x0))


def test_classifier_free_clips_after_guiding_and_keeps_the_conditional_variance(x):
    denoise = Denoiser(network([], learned_var=True), LINEAR, learned_var=True, clip=True)
    guided = guidance.classifier_free(denoise, COND, NULL, 3.0)(x, 0.9)
    loose = Denoiser(denoise.net, LINEAR, learned_var=True)
    on, off = loose(x, 0.9, **COND), loose(x, 0.9, **NULL)
    torch.testing.assert_close(guided.x0, (off.x0 + 3 * (on.x0 - off.x0)).clamp(-1, 1))
    torch.testing.assert_close(guided.var, on.var)


def test_classifier_free_off_has_no_second_half(x):
    calls = []
    denoise = Denoiser(network(calls), LINEAR)
    on = denoise(x, 0.3, **COND)
    for guided in (guidance.classifier_free(denoise, COND, NULL, 1.0),
                   guidance.classifier_free(denoise, COND, NULL, 4.0, interval=(0.5, 0.9)),
                   guidance.classifier_free(denoise, COND, NULL, lambda t: 1 if t < 0.5 else 4)):
        assert torch.equal(guided(x, 0.3).eps, on.eps) and guided.schedule is LINEAR
    assert calls == [2] * 4


def test_classifier_free_options(x):
    denoise = Denoiser(network([]), LINEAR)
    on, off = denoise(x, 0.6, **COND).eps, denoise(x, 0.6, **NULL).eps
    some = guidance.classifier_free(denoise, COND, NULL, 4.0, channels=3, interval=(0.5, 0.9))(x, 0.6).eps
    torch.testing.assert_close(some, torch.cat([(off + 4 * (on - off))[:, :3], on[:, 3:]], 1))
    falling = guidance.classifier_free(denoise, COND, NULL, lambda t: 10 * t)(x, 0.6).eps
    torch.testing.assert_close(falling, off + 6 * (on - off))
    # a condition that null lacks stays on in both halves
    masked = Denoiser(lambda x, n, label, mask: network([])(x, n, label) + mask, LINEAR)
    mask = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    kept = guidance.classifier_free(masked, {**COND, "mask": mask}, NULL, 4.0)(x, 0.6).eps
    torch.testing.assert_close(kept, off + 4 * (on - off) + 1)
    with pytest.raises(ValueError, match=r"null conditions \['text'\]"):
        guidance.classifier_free(denoise, COND, {"text": mask}, 2.0)
    with pytest.raises(ValueError, match="put other guidance around it"):
        guidance.classifier_free(lambda x, t: None, COND, NULL, 2.0)


def test_gradient_guidance_is_the_published_step(x):
    """MGDM's step by hand: x0 clipped, both estimates shifted, x0 not clipped again."""
    t, s, scale = 0.501, 0.497, 5.0
    direction = torch.randn(4, 2, 2, dtype=torch.float64)
    energy = lambda x, t: (direction * x).sum((1, 2, 3)) + 0.5 * t * x.square().sum((1, 2, 3))
    denoise = Denoiser(network([]), LINEAR, clip=True)
    plain = denoise(x, t, **COND)
    gradient = direction + t * x
    variance = 1 - LINEAR.alpha(t) ** 2
    eps = plain.eps - variance ** 0.5 * scale * gradient
    x0 = plain.x0 + variance / LINEAR.alpha(t) * scale * gradient
    guided = guidance.by_gradient(conditional(denoise), energy, scale)
    with torch.no_grad():
        estimate = guided(x, t)
        made = sample_ddim(guided, x, [t, s], LINEAR)
    torch.testing.assert_close(estimate.x0, x0)
    torch.testing.assert_close(estimate.eps, eps)
    torch.testing.assert_close(made, LINEAR.alpha(s) * x0 + LINEAR.sigma(s) * eps)
    torch.testing.assert_close(LINEAR.add_noise(estimate.x0, estimate.eps, t), x)       # still explains x_t
    assert not made.requires_grad
    # ancestral: the mean moves by the variance of the step times the gradient
    variance = LINEAR.posterior(t, s).small
    moved, unmoved = (sample_ddpm(d, x, [t, s], LINEAR, generator=torch.Generator().manual_seed(0))
                      for d in (guided, conditional(denoise)))
    torch.testing.assert_close(moved - unmoved, variance * scale * gradient)


def test_gradient_guidance_options(x):
    denoise = conditional(Denoiser(network([]), LINEAR))
    energy = lambda x, t: x.square().sum((1, 2, 3))
    plain, alpha, sigma = denoise(x, 0.4), LINEAR.alpha(0.4), LINEAR.sigma(0.4)
    assert guidance.by_gradient(denoise, lambda x, t: 1 / 0, 0) is denoise
    outside = guidance.by_gradient(denoise, lambda x, t: 1 / 0, 1.0, window=(0.5, 1.0))
    assert torch.equal(outside(x, 0.4).eps, plain.eps)
    clipped = guidance.by_gradient(denoise, energy, lambda t: 10 * t, clip_norm=0.5)(x, 0.4)
    unit = x / x.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(clipped.eps, plain.eps - sigma * 4 * 0.5 * unit)
    again = guidance.by_gradient(denoise, energy, 9.0, reclip=True)(x, 0.4)
    assert again.x0.abs().max() == 1
    torch.testing.assert_close(LINEAR.add_noise(again.x0, again.eps, 0.4), x)
    # at the estimated clean image x0 = k x, the gradient of |k x|^2 is 2 k^2 x
    k = (1 - sigma * (COND["label"][:, None, None, None].double() + 1) / 4) / alpha
    with torch.no_grad():
        through = guidance.by_gradient(denoise, energy, 0.1, on="x0")(x, 0.4)
    torch.testing.assert_close(through.eps, plain.eps - sigma * 0.1 * 2 * k ** 2 * x)
    with pytest.raises(ValueError, match="allowed: 'x_t', 'x0'"):
        guidance.by_gradient(denoise, energy, 1.0, on="xt")


@pytest.mark.parametrize("on", ["x_t", "x0"])
def test_gradient_passes_through_gradient_guidance(x, on):
    energy = lambda x, t: torch.tanh(x).sum((1, 2, 3))
    guided = guidance.by_gradient(conditional(Denoiser(network([]), LINEAR)), energy, 0.3, on=on)
    start = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample_ddim(guided, x, [0.6, 0.4, 0.2], LINEAR), start)


def test_energies():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    p = logits.softmax(1)
    label = torch.tensor([1, 2])
    expected = {"log_probability": p[[0, 1], label].log(), "entropy": -(p * p.log()).sum(1),
                "margin": -(p[:, 0] - p[:, 1]), "least_confidence": -p[:, 0]}
    assert set(expected) == set(guidance.MEASURES)
    for name, value in expected.items():
        energy = guidance.energy(name, lambda x, t: logits, label)
        torch.testing.assert_close(energy(torch.zeros(2, 1), 0.5), value)
    with pytest.raises(ValueError, match="known: log_probability"):
        guidance.energy("Entropy", None)
    with pytest.raises(ValueError, match="needs the label"):
        guidance.energy("log_probability", None)


def test_classifier_reads_its_own_network_time():
    seen = []
    for network_time in (LINEAR.network_time, lambda t: 250 * t - 0.25):    # the second: index in ddim250
        guidance.at_network_time(lambda x, n: seen.append(n), network_time)(torch.zeros(2, 1), 0.401)
    assert seen[0].tolist() == [400, 400] and seen[1].tolist() == [100, 100]


class Reader(torch.nn.Module):
    """eps = (a w + 1) x / 4 + w / 8, w being the mean state of a text, whose numbers a table of its own makes states."""

    takes = ("text",)

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.arange(8.0)[:, None] / 8, freeze=False)
        self.a, self.read = torch.nn.Parameter(torch.tensor(1.0)), []

    def forward(self, x, n, text):
        w = self.of_tokens(text).mean((1, 2))[:, None, None, None]
        return (self.a * w + 1) * x / 4 + w / 8

    def of_tokens(self, text):
        if text.is_floating_point():
            return text
        self.read.append(tuple(text.shape))
        return self.table(text)


class ReadsOnce(Reader):
    states = Reader.of_tokens


def pipeline_of(net, **sample):
    config = d(nnet=d(sample_size=2, in_channels=4), denoiser=d(predicts="eps"),
               sample=d(**dict(dict(algorithm="ddim", sample_steps=4, guidance=2.0), **sample)))
    return pipeline.Pipeline(net, config, codec=codecs.get("pixels", channels=4), schedule=LINEAR,
                             null={"text": torch.tensor([0, 0])})


def test_a_text_encoder_within_the_network_reads_once():
    cond, often, once = {"text": torch.tensor([[1, 2], [3, 7], [5, 6]])}, Reader(), ReadsOnce()
    images = [pipeline_of(net)(cond, seed=0, indices=[0, 1, 2]) for net in (often, once)]
    assert torch.equal(*images) and images[0].std() > 0.1
    assert often.read == [(6, 2)] * 4 and once.read == [(3, 2), (1, 2)]  # the texts asked for, and the empty one
    z = [pipeline_of(net).encode(images[0], cond) for net in (often, once)]
    assert torch.equal(*z) and len(once.read) == 4
    states = once.states(cond["text"]).detach()
    assert once.states(states) is states  # what is states already needs no reading


def test_a_training_samples_with_its_own_weights_and_gradients():
    """As the colour loss of Med-Art does: through the sampler, at another scale, in the weights of network and text encoder."""
    cond, net = {"text": torch.tensor([[1, 2], [3, 7]])}, ReadsOnce()
    sampler = pipeline_of(ReadsOnce().requires_grad_(False))
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def sampled(**options):
        return sampler.codec.decode(samplers.run("dpmpp_2m", sampler.denoise(cond, **options), x, LINEAR, 3))

    assert not sampled().requires_grad and torch.equal(sampled(net=net), sampled())
    images = sampled(net=net, guidance=4.5)
    assert not torch.allclose(images, sampled(), atol=1e-3)
    by_hand = guidance.classifier_free(Denoiser(net, LINEAR), {"text": net.table(cond["text"])},
                                       {"text": net.table(torch.zeros(2, 2, dtype=torch.int64))}, 4.5)
    torch.testing.assert_close(images, samplers.run("dpmpp_2m", by_hand, x, LINEAR, 3))
    images.square().sum().backward()
    assert net.a.grad != 0 and (net.table.weight.grad[[0, 1, 2, 3, 7]] != 0).all()
    wrapped = torch.nn.Module()
    wrapped.module, wrapped.forward = net, net.forward
    assert torch.equal(sampled(net=wrapped, guidance=4.5), images)
    plain = guidance.classifier_free(Denoiser(net, LINEAR), cond, {}, 1.0)
    assert torch.equal(sampled(net=net, guidance=1.0), samplers.run("dpmpp_2m", plain, x, LINEAR, 3))


def test_what_config_sample_says_of_guidance(x):
    """guided_channels and guidance_interval reach the denoiser, are told, and are refused where they mean nothing."""
    cond, net = {"text": torch.tensor([[1, 2], [3, 7]])}, ReadsOnce()
    sampler = pipeline_of(net, guidance=4.0, guided_channels="first_three", guidance_interval=(0.2, 0.8))
    for t, guided in ((0.1, 0), (0.5, 3), (0.9, 0)):
        made = sampler.denoise(cond)(x, t).eps
        on = sampler.denoise(cond, guidance=1.0)(x, t).eps
        off = pipeline_of(net).denoise({"text": torch.zeros(2, 2, dtype=torch.int64)}, guidance=1.0)(x, t).eps
        torch.testing.assert_close(made, torch.cat([(off + 4 * (on - off))[:, :guided], on[:, guided:]], 1))
    assert sampler.describe() == "ddim, 4 steps, guidance 4 of the first 3 channels for t in [0.2, 0.8]"
    assert pipeline_of(net).describe() == "ddim, 4 steps, guidance 2"
    with pytest.raises(ValueError, match="guided_channels is 'first_tree'; known: all, first_three. Did you mean 'first_three'"):
        pipeline_of(net, guided_channels="first_tree")
    for wrong in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2), (0.1,), "0.2", (0.0, "1")):
        with pytest.raises(ValueError, match="guidance_interval is .* 0 <= from < to <= 1"):
            pipeline_of(net, guidance_interval=wrong)
    with pytest.raises(ValueError, match="more than 3 channels, and this network denoises 3"):
        pipeline.guidance_options(d(guided_channels="first_three"), 3)
