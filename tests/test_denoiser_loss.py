"""What a network's output means, whatever it predicts, and the losses against the originals' numbers."""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from libs.diffusion import Denoiser, loss, schedule

PARITY = Path(__file__).parent / "parity" / "hybrid_loss.safetensors"


@pytest.fixture(scope="module")
def published():
    return load_file(PARITY)


def agree(a, b, rtol=1e-4):
    assert (a - b).abs().max() <= rtol * b.abs().max()


def noisy(name, t, shape=(3, 3, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x0, eps, schedule(name).add_noise(x0, eps, t)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", ["vpsde", "sd", "cosine"])
@pytest.mark.parametrize("clip", [False, True])
def test_true_target_gives_true_estimate(predicts, name, clip):
    for t in (0.25, torch.tensor([0.001, 0.25, 0.97], dtype=torch.float64)):
        x0, eps, x = noisy(name, t)
        denoise = Denoiser(None, schedule(name), predicts, clip=clip)
        denoise.net = lambda x, n: denoise.target(x0, eps, t)
        estimate = denoise(x, t)
        torch.testing.assert_close(estimate.x0, x0)
        torch.testing.assert_close(estimate.eps, eps)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_clipped_estimate_still_explains_x(predicts):
    noise, x = schedule("linear"), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    estimate = Denoiser(lambda x, t: 3 * x, noise, predicts, clip=True)(x, 0.3)
    assert estimate.x0.abs().max() == 1
    torch.testing.assert_close(noise.add_noise(estimate.x0, estimate.eps, 0.3), x)


def test_network_receives_published_time():
    seen = []

    def net(x, t, label):
        seen.append((t, label))
        return x
    x, label = torch.zeros(2, 3, 4, 4), torch.tensor([1, 2])
    Denoiser(net, schedule("linear"))(x, 0.569, label=label)
    Denoiser(net, schedule("sd"))(x, torch.tensor([0.569, 1.0]), label=label)
    assert [t.dtype for t, _ in seen] == [torch.float32] * 2
    torch.testing.assert_close(seen[0][0], torch.tensor([568.0, 568.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[1][0], torch.tensor([569.0, 1000.0]), rtol=0, atol=1e-4)
    assert seen[0][1] is label


def test_bad_denoisers():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="allowed: eps, x0, v"):
        Denoiser(None, schedule("sd"), "epsilon")
    with pytest.raises(ValueError, match="True is for 2C channels"):
        Denoiser(lambda x, t: torch.cat([x, x], 1), schedule("sd"))(x, 0.5)
    with pytest.raises(ValueError, match="True is for 2C channels"):
        Denoiser(lambda x, t: x, schedule("sd"), learned_var=True)(x, 0.5)
    with pytest.raises(ValueError, match="clean data"):
        Denoiser(lambda x, t: x, schedule("sd"), "x0")(x, 0.0)


def test_hybrid_loss_matches_published(published):
    noise, t = schedule("linear"), (published["in.t"] + 1).double() / 1000
    denoise = Denoiser(lambda x, n: published["in.model_output"], noise, learned_var=True)
    x0, eps = published["in.x0"], published["in.noise"]
    agree(noise.add_noise(x0, eps, t), published["out.x_t"])
    adm = loss.hybrid(denoise, x0, t, eps)
    mgdm = loss.hybrid(denoise, x0, t, eps, weighting="mgdm")
    for ours, key in ((adm.loss, "adm_loss"), (adm.mse, "adm_mse"), (adm.vb, "adm_vb"),
                      (mgdm.loss, "loss"), (mgdm.mse, "weighted_mse"), (mgdm.vb, "vb")):
        agree(ours, published[f"out.{key}"])
        assert ours.shape == (4,) and ours.dtype == torch.float32
    estimate = Denoiser(denoise.net, noise, learned_var=True, clip=True)(published["out.x_t"], t)
    agree(estimate.x0, published["out.pred_xstart"])
    agree(loss.hybrid(denoise, x0, t, eps, rescale_learned_sigmas=True).vb, published["out.adm_vb"])
    agree(loss.hybrid(denoise, x0, t, eps, use_kl=True).loss, 1000 * published["out.adm_vb"])


def test_hybrid_loss_on_a_respaced_grid():
    """On ddim250: the KL of a step by hand, its rescaling, and the prediction detached from the bound."""
    noise, t = schedule("linear"), torch.tensor([401 / 1000], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    net = lambda x, n: torch.cat([weights[0] * x, weights[1].expand_as(x)], 1)
    denoise, grid = Denoiser(net, noise, learned_var=True), noise.times("ddim250")
    x0, eps, x = noisy("linear", t, (1, 1, 2, 2))
    result = loss.hybrid(denoise, x0, t, eps, times=grid)
    step = noise.posterior(401 / 1000, 397 / 1000)
    var = math.exp(0.6 * math.log(step.large) + 0.4 * math.log(step.small))
    gap = step.x0 * (x0 - denoise(x, t).x0)
    kl = 0.5 * (math.log(var / step.small) + (step.small + gap ** 2) / var - 1).mean() / math.log(2)
    torch.testing.assert_close(result.vb[0], kl)
    rescaled = loss.hybrid(denoise, x0, t, eps, times=grid, rescale_learned_sigmas=True)
    torch.testing.assert_close(rescaled.vb[0], kl / 4)
    by_vb, = torch.autograd.grad(result.vb.sum(), weights)
    assert by_vb[0] == 0 and by_vb[1] != 0
    alone = loss.hybrid(denoise, x0, t, eps, times=grid, use_kl=True)
    torch.testing.assert_close(alone.loss[0], 250 * kl)
    assert torch.autograd.grad(alone.loss.sum(), weights)[0][0] != 0


def test_normal_terms_match_published_numbers():
    zero = torch.zeros(())
    assert loss.normal_kl(zero + 1, zero, zero, zero) == pytest.approx(0.5)
    assert loss.normal_kl(zero, zero + math.log(0.5), zero, zero) == pytest.approx(0.0965735912)
    x, log_std = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.0, 0.0, -2.0])
    ours = loss.discretised_log_likelihood(x, zero, log_std)
    assert ours.tolist() == pytest.approx([-5.76704979, -1.83409524, -27.6310215], rel=1e-5)


def test_hybrid_refuses():
    x0, t = torch.zeros(1, 1, 2, 2), torch.tensor([0.5])
    with pytest.raises(ValueError, match="learned_var=True"):
        loss.hybrid(Denoiser(None, schedule("linear")), x0, t)
    with pytest.raises(ValueError, match="VPSDE"):
        loss.hybrid(Denoiser(None, schedule("vpsde"), learned_var=True), x0, t)


@pytest.mark.parametrize("weighting", list(loss.WEIGHTINGS))
def test_weightings_do_not_depend_on_what_is_predicted(weighting):
    """The same error of x0 costs the same, said as eps, x0 or v; at SNR 0 and infinity it is finite."""
    noise, t = schedule("sd"), torch.tensor([0.001, 0.4, 1.0], dtype=torch.float64)
    x0, eps, x = noisy("sd", t)
    wrong = x0 + 0.1
    costs = []
    for predicts in ("eps", "x0", "v"):
        denoise = Denoiser(None, noise, predicts)
        implied = Denoiser(lambda x, n: wrong, noise, "x0")(x, t)
        denoise.net = lambda x, n: denoise.target(implied.x0, implied.eps, t)
        costs.append(loss.simple(denoise, x0, t, eps, weighting=weighting))
        ends = torch.tensor([0.0, 1e-12, 1.0])
        for name in ("vpsde", "vpsde_cosine", "cosine"):
            assert loss.weight(Denoiser(None, schedule(name), predicts), ends, weighting).isfinite().all()
    snr = noise.snr(t)
    by_name = {"eps": snr, "x0": 0 * snr + 1, "v": snr + 1, "min_snr": snr.clamp(max=5),
               "truncated_snr": snr.clamp(min=1), "clamped_snr": snr.clamp(1, 5), "mgdm": snr * noise.sigma(t)}
    for cost in costs:
        torch.testing.assert_close(cost, 0.01 * by_name[weighting])


def test_published_weights():
    def weights(name, steps, weighting):
        t = torch.tensor(steps, dtype=torch.float64) / 1000 + 0.001
        return loss.weight(Denoiser(None, schedule(name)), t, weighting).tolist()
    assert weights("sd", [0, 100, 250], "min_snr") == pytest.approx([0.0042537, 0.591446, 1], rel=1e-4)
    assert weights("linear", [0, 100, 250], "min_snr") == pytest.approx([0.00050013, 0.58571, 1], rel=2e-4)
    assert weights("linear", [0, 250, 999], "mgdm") == pytest.approx([0.01, 0.691792577, 0.999979821])
    assert weights("linear", [0, 999], "eps") == [1, 1]
    with pytest.raises(ValueError, match="known: eps"):
        weights("linear", [0], "snr")


def test_simple_passes_conditions_and_auxiliary_losses():
    def net(x, t, label, with_losses=False):
        out = x * label[:, None, None, None]
        return (out, {"prototype": label.sum()}) if with_losses else out
    x0, t, label = torch.ones(2, 1, 2, 2), torch.tensor([0.5, 0.7]), torch.tensor([1.0, 2.0])
    denoise, eps = Denoiser(net, schedule("vpsde")), torch.full((2, 1, 2, 2), 0.5)
    x = schedule("vpsde").add_noise(x0, eps, t)[:, 0, 0, 0]
    plain = loss.simple(denoise, x0, t, eps, label=label)
    torch.testing.assert_close(plain, (x * label - 0.5) ** 2)
    again, losses = loss.simple(denoise, x0, t, eps, label=label, with_losses=True)
    assert torch.equal(again, plain) and losses["prototype"] == 3
