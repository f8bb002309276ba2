"""Samplers against the originals' end points, closed forms for Gaussian data, orders of convergence.

Data drawn elementwise from two normals (or one) have an exact denoiser, so no network is trained here.
"""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from libs.diffusion import Denoiser, Estimate, guidance, samplers, schedule
from libs.diffusion.samplers import run, sample_ddim, sample_ddpm, sample_dpmpp_2m, sample_dpmpp_fast

PARITY = Path(__file__).parent / "parity" / "samplers.safetensors"
DETERMINISTIC = ["ddim", "euler_maruyama_ode", "dpm_solver", "dpmpp_fast", "dpmpp_2m"]


@pytest.fixture(scope="module")
def published():
    return load_file(PARITY)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def exact(noise, means=(-0.6, 0.5), std=0.2, **kwargs):
    """Denoiser for data drawn elementwise from equal parts of N(mean, std^2)."""
    def net(x, n):
        t = (n[0].item() - noise.shift) / noise.scale
        alpha, variance = noise.alpha(t), noise.alpha(t) ** 2 * std ** 2 + noise.sigma(t) ** 2
        gaps = torch.stack([x - alpha * mean for mean in means])
        return noise.sigma(t) * (torch.softmax(-gaps ** 2 / (2 * variance), 0) * gaps).sum(0) / variance
    return Denoiser(net, noise, **kwargs)


def gaussian(noise, std=0.5):
    return exact(noise, (0.0,), std)


def factor(name, noise, steps, std=0.5):
    """x_0 / x_T for Gaussian data, where every deterministic sampler is linear."""
    return run(name, gaussian(noise, std), torch.ones(1, 1, dtype=torch.float64), noise, steps).item()


def agree(a, b, rtol):
    assert a.shape == b.shape and (a - b).abs().max() <= rtol * b.abs().max()


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpmpp_fast_is_published(published, steps):
    sd = schedule("sd")
    ours = run("dpmpp_fast", exact(sd), published["in.x_T"], sd, steps)
    agree(ours, published[f"out.dpmpp_fast_{steps}"], 2e-5)


def test_probability_flow_euler_is_published(published):
    vp = schedule("vpsde")
    ours = run("euler_maruyama_ode", exact(vp), published["in.x_T"], vp, 50)
    agree(ours, published["out.vpsde_ode_euler_50"], 2e-5)


@pytest.mark.parametrize("steps", ["ddim25", "ddim250"])
def test_ddim_and_encoding_are_published(published, steps):
    noise = schedule("linear")
    made = run("ddim", exact(noise), published["in.x_T"], noise, steps)
    agree(made, published[f"out.adm_{steps}"], 2e-5)
    rising = noise.times(steps)[:-1].flip(0)
    latent = sample_ddim(exact(noise), made, rising, noise, to_noise=True)
    agree(latent, published[f"out.adm_{steps}_encoded"], 2e-5)
    # the last step to alpha = 0 leaves the noise predicted at the last time
    before = sample_ddim(exact(noise), made, rising, noise)
    torch.testing.assert_close(latent, exact(noise)(before, rising[-1].item()).eps)


def test_published_results_on_gaussian_data():
    vp, sd, linear = schedule("vpsde"), schedule("sd"), schedule("linear")
    assert factor("dpm_solver", vp, 50) == pytest.approx(0.50025, abs=2e-5)
    assert factor("dpmpp_fast", sd, 50) == pytest.approx(0.509044, abs=2e-6)
    assert factor("euler_maruyama_ode", vp, 50) == pytest.approx(0.495745995, abs=1e-7)
    assert factor("euler_maruyama_ode", vp, 1000) == pytest.approx(0.499773501, abs=1e-7)
    one = torch.ones(1, 1, dtype=torch.float64)
    for steps, half in ((20, 8.870066), (14, 8.866921)):     # Med-Art's solver, network eps(x) = x / 2
        ours = run("dpmpp_2m", Denoiser(lambda x, n: 0.5 * x, linear), one, linear, steps)
        assert ours.item() == pytest.approx(half, abs=2e-6)
    zero = run("dpmpp_2m", Denoiser(lambda x, n: 0 * x, linear), one, linear, 20)
    assert zero.item() == pytest.approx(157.41046, abs=2e-5)


def test_euler_maruyama_sde_has_the_spread_of_the_data():
    vp = schedule("vpsde")
    x = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    made = run("euler_maruyama_sde", gaussian(vp), x, vp, 300, generator=torch.Generator().manual_seed(1))
    assert made.std() == pytest.approx(0.5, abs=0.008)


@pytest.mark.parametrize("name, steps, error, latent", [
    ("linear", "ddim250", 1.298e-04, 0.9915), ("linear", "ddim100", 7.682e-04, 0.9749),
    ("linear", "ddim50", 2.889e-03, 0.9477), ("linear", "ddim25", 1.037e-02, 0.8953),
    ("cosine", "ddim250", 3.862e-05, 0.9967), ("cosine", "ddim25", 3.301e-03, 0.9431)])
def test_ddim_round_trip_error_is_published(name, steps, error, latent):
    """Mean squared error after encoding and decoding N(0, 0.5^2); the published draw was 0.3 % wider."""
    noise = schedule(name)
    x = torch.full((1, 1), 0.5, dtype=torch.float64)    # the map is linear: one deviation says all
    encoded = sample_ddim(gaussian(noise), x, noise.times(steps)[:-1].flip(0), noise, to_noise=True)
    decoded = sample_ddim(gaussian(noise), encoded, noise.times(steps), noise)
    assert encoded.item() == pytest.approx(latent, rel=4e-3)
    assert ((decoded - x) ** 2).item() == pytest.approx(error, rel=2e-2)


@pytest.mark.parametrize("name, order, steps", [
    ("ddim", 1, (64, 128)), ("euler_maruyama_ode", 1, (200, 400)), ("dpmpp_2m", 2, (40, 80)),
    ("dpm_solver", 3, (30, 60)), ("dpmpp_fast", 3, (30, 60))])
def test_order_of_convergence(name, order, steps):
    """Halving the steps multiplies the error by 2^-order, on two-Gaussian data between fixed ends."""
    vp = schedule("vpsde")
    x = torch.linspace(-1.5, 1.5, 30, dtype=torch.float64).view(-1, 1)

    def solve(name, n):
        # calls come in threes for the two of order 3, without a tail of lower order
        n, spacing = (n + 2, "logsnr_fast") if order == 3 else (n, "logsnr")
        return samplers.SAMPLERS[name](exact(vp), x, vp.times(n, spacing=spacing, start=0.9, end=0.01), vp)
    truth = solve("dpm_solver", 1200)
    coarse, fine = ((solve(name, n) - truth).abs().mean().item() for n in steps)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4)


def test_ddim_with_eta_one_is_ancestral():
    noise, x = schedule("cosine"), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    by_ddim, by_ddpm = (
        run(name, exact(noise), x, noise, "ddim25", generator=torch.Generator().manual_seed(3), **own)
        for name, own in (("ddim", {"eta": 1.0}), ("ddpm", {"variance": "small"})))
    torch.testing.assert_close(by_ddim, by_ddpm)


def test_ancestral_variances():
    """The head v = -1, 1 spans beta~ to beta; for Gaussian data the spread follows a recursion by hand."""
    noise, x = schedule("linear"), torch.randn(40, 1, 20, 20, dtype=torch.float64)

    def sample(v, variance):
        inner = gaussian(noise)
        net = inner.net if v is None else lambda x, n: torch.cat([inner.net(x, n), torch.full_like(x, v)], 1)
        denoise = Denoiser(net, noise, learned_var=v is not None)
        return sample_ddpm(denoise, x, noise.times("ddim10"), noise, variance=variance,
                           generator=torch.Generator().manual_seed(0))
    small, large = sample(None, "small"), sample(None, "large")
    torch.testing.assert_close(sample(-1.0, None), small)
    torch.testing.assert_close(sample(1.0, "learned"), large)
    torch.testing.assert_close(sample(None, None), small)
    for kind, made in (("small", small), ("large", large)):
        spread, times = x.var().item(), noise.times("ddim10").tolist()
        for t, s in zip(times, times[1:]):
            step, alpha = noise.posterior(t, s), noise.alpha(t)
            gain = step.xt + step.x0 * alpha * 0.25 / (0.25 * alpha ** 2 + noise.sigma(t) ** 2)
            spread = gain ** 2 * spread + (getattr(step, kind) if s > 0 else 0)
        assert made.var().item() == pytest.approx(spread, rel=0.05)
    with pytest.raises(ValueError, match="learned_var=False"):
        sample(None, "learned")
    with pytest.raises(ValueError, match="allowed: 'learned'"):
        sample(None, "fixed")


@pytest.mark.parametrize("name, own", [("ddpm", {}), ("ddim", {"eta": 0.7}), ("euler_maruyama_sde", {})])
def test_an_image_does_not_depend_on_its_batch(name, own):
    noise = schedule("sd")

    def sample(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = samplers.normal_like(torch.empty(len(seeds), 2, 4, 4), generators)
        return run(name, exact(noise), x, noise, 10, generator=generators, **own)
    torch.testing.assert_close(sample([5, 6, 7]), torch.cat([sample([5]), sample([6, 7])]))
    assert not torch.allclose(sample([5]), sample([6]))
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        samplers.normal_like(torch.empty(2, 1), [torch.Generator()] * 3)


@pytest.mark.parametrize("sample", [sample_dpmpp_2m, sample_dpmpp_fast, sample_ddim])
def test_gradient_passes_through_the_sampler(sample):
    vp = schedule("vpsde")
    x, times = torch.tensor([[0.3, -1.2]], dtype=torch.float64, requires_grad=True), vp.times(7)
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def end(x, weight):
        return sample(Denoiser(lambda x, n: weight * torch.tanh(x), vp), x, times, vp)
    with torch.enable_grad():
        assert torch.autograd.gradcheck(end, (x, weight))


class Count(TorchDispatchMode):
    """Counts the operations dispatched outside the network."""
    total, paused = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += not self.paused
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("case, guide", [
    ({}, {}), ({"learned_var": True, "clip": True}, {}), ({"predicts": "v"}, {}), ({}, {"channels": 3})])
def test_operations_per_guided_call(name, case, guide):
    """At batch 1 a GPU waits for launches: a guided call costs at most 16 operations besides the network."""
    noise, calls = schedule("sd"), []
    with Count() as count:
        def net(x, n, label):
            count.paused = True
            calls.append(len(x))
            out = torch.cat([x, x], 1) * 0.5 if case.get("learned_var") else x * 0.5
            count.paused = False
            return out
        x, label = torch.zeros(1, 4, 2, 2), {"label": torch.tensor([1])}
        denoise = guidance.classifier_free(Denoiser(net, noise, **case), label, label, 2.0, **guide)
        count.total = 0
        run(name, denoise, x, noise, 20)
    assert calls == [2] * 20        # as many network calls as asked for, both halves in each
    assert count.total / len(calls) <= 16


def test_bad_input():
    noise, vp = schedule("linear"), schedule("vpsde")
    x = torch.zeros(1, 1)
    for times in ([0.5], [], [1.2, 0.5], [0.5, 0.5, 0.2], [0.5, 0.2, 0.3]):
        with pytest.raises(ValueError, match="times="):
            sample_ddim(exact(noise), x, times, noise)
    with pytest.raises(ValueError, match="must fall strictly$"):
        sample_ddim(exact(noise), x, [0.2, 0.5], noise, eta=0.5)
    with pytest.raises(ValueError, match="allowed are 0"):
        sample_ddim(exact(noise), x, [0.5, 0.2], noise, eta=1.5)
    with pytest.raises(ValueError, match="rising times"):
        sample_ddim(exact(noise), x, [0.5, 0.2], noise, to_noise=True)
    with pytest.raises(ValueError, match="is infinite"):
        sample_dpmpp_fast(exact(noise), x, [0.5, 0.2, 0.0], noise)
    with pytest.raises(ValueError, match="known: ddim, ddpm"):
        run("plms", exact(noise), x, noise, 10)
    with pytest.raises(ValueError, match="whole numbers"):
        run("dpmpp_fast", exact(noise), x, noise, "ddim25")
    with pytest.raises(ValueError, match="continuous"):
        run("ddim", exact(vp), x, vp, "ddim25")


@pytest.mark.parametrize("spacing, error", [("", 9.344e-6), ("ddim250", 1.298e-4), ("ddim100", 7.682e-4), ("ddim50", 2.889e-3),
                                            ("ddim25", 1.037e-2)])
def test_round_trip_of_gaussian_data_within_the_figures_of_the_original(spacing, error):
    """Encoding and decoding N(0, 0.5^2) by its exact denoiser, T steps and T-1; the figures are guided-diffusion's."""
    linear = schedule("linear")

    def denoise(x, t):
        alpha, sigma = linear.alpha(t), linear.sigma(t)
        eps = sigma * x / (0.25 * alpha ** 2 + sigma ** 2)
        return Estimate((x - sigma * eps) / alpha, eps)

    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    times = linear.times(spacing)
    for to_noise in (True, False):
        z = samplers.sample_ddim(denoise, x, times[:-1].flip(0), linear, to_noise=to_noise)
        back = samplers.sample_ddim(denoise, z, times, linear)
        assert (back - x).square().mean().item() == pytest.approx(error, rel=0.03)
