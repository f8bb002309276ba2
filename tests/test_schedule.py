"""Noise schedules against the originals' tables, their own inverse, and the published grids of times."""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from libs.diffusion import schedule

PARITY = Path(__file__).parent / "parity" / "schedules.safetensors"
NAMES = ["vpsde", "vpsde_cosine", "sd", "linear", "cosine"]


@pytest.fixture(scope="module")
def published():
    return {key.removeprefix("out."): value for key, value in load_file(PARITY).items()}


def close(a, b, rtol=1e-6):
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), b, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine", "sd"])
def test_discrete_tables_match_published(name, published):
    noise = schedule(name)
    t = torch.arange(0, 1001).double() / 1000
    close([noise.alpha(n / 1000) ** 2 for n in range(1, 1001)], published[f"{name}_alphas_cumprod"], 1e-9)
    close(noise.alpha(t)[1:] ** 2, published[f"{name}_alphas_cumprod"], 1e-9)
    step = noise.posterior(t[1:], t[:-1])
    close(step.large, published[f"{name}_betas"], 1e-8)
    if name != "sd":
        close(step.small, published[f"{name}_posterior_variance"], 1e-8)
    # the two identities of the posterior: it keeps the mean and the variance of q(x_s)
    close(step.x0 + step.xt * noise.alpha(t[1:]), noise.alpha(t[:-1]))
    close(step.small + step.xt ** 2 * noise.sigma(t[1:]) ** 2, noise.sigma(t[:-1]) ** 2)


@pytest.mark.parametrize("name", ["vpsde", "vpsde_cosine"])
def test_continuous_tables_match_published(name, published):
    noise = schedule(name)
    close(noise.alpha(published["t"]) ** 2, published[f"{name}_cum_alpha"])
    close([noise.alpha(t) ** 2 for t in published["t"].tolist()], published[f"{name}_cum_alpha"])


def test_golden_numbers():
    sd, vp = schedule("sd"), schedule("vpsde")
    assert sd.alpha(0.25) ** 2 == pytest.approx(0.6754324137251241, rel=1e-12)
    assert vp.alpha(0.5) ** 2 == pytest.approx(0.07906381245316069, rel=1e-12)
    assert vp.lam(1.0) == pytest.approx(-5.02498, abs=1e-5)
    assert vp.lam(1e-4) == pytest.approx(5.75281, abs=2e-3)     # published: by way of float32
    assert [sd.lam(1.0), sd.lam(1e-3)] == pytest.approx([-2.68202, 3.53470], abs=2e-5)
    small = schedule("linear").posterior(0.002, 0.001).small
    assert small == pytest.approx(5.4531876613021935e-05, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_floats_and_tensors_agree_and_are_consistent(name):
    noise = schedule(name)
    t = torch.tensor([0.0, 3e-5, 0.0213, 0.5, 0.9305, 0.99], dtype=torch.float64)
    for quantity in (noise.alpha, noise.sigma, noise.log_alpha, noise.lam, noise.snr):
        of_floats = [quantity(v) for v in t.tolist()]
        assert all(type(v) is float for v in of_floats)
        close(quantity(t), torch.tensor(of_floats, dtype=torch.float64), 1e-9)
        assert quantity(t.float()).dtype == torch.float32 and quantity(t.view(2, 3)).shape == (2, 3)
    close(noise.alpha(t) ** 2 + noise.sigma(t) ** 2, torch.ones(6).double(), 1e-12)
    assert (noise.alpha(0.0), noise.sigma(0.0)) == (1.0, 0.0)
    assert noise.lam(0.0) == noise.snr(0.0) == math.inf
    for v in (0.0213, 0.5003, 0.9303):
        assert noise.t_of_lam(noise.lam(v)) == pytest.approx(v, rel=1e-9)
        slope = (noise.log_alpha(v + 1e-6) - noise.log_alpha(v - 1e-6)) / 2e-6
        assert noise.beta(v) == pytest.approx(-2 * slope, rel=1e-5)


def test_network_time_is_published():
    assert [schedule(n).network_time(1.0) for n in NAMES] == [999, 999, 1000, 999, 999]
    first = [schedule(n).network_time(0.001) for n in ("vpsde", "sd", "linear")]
    assert first == pytest.approx([0.999, 1, 0])


def test_respaced_times_match_published(published):
    noise = schedule("linear")
    for steps, key in (("ddim25", "ddim25"), ("250", "250"), ("10,15,20", "10_15_20"), (250, "250")):
        falling = (published[f"timesteps_{key}"].flip(0) + 1).double() / 1000
        close(noise.times(steps), torch.cat([falling, torch.zeros(1).double()]), 1e-15)
    short = (schedule("linear", steps=300).times("10,15,20") * 300 - 1).round().int().flip(0).tolist()
    assert short[1:13] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 107]
    assert len(noise.times("")) == 1001


def test_other_times():
    vp, linear = schedule("vpsde"), schedule("linear")
    fast = vp.times(50, spacing="logsnr_fast")
    assert len(fast) == 51                                          # 16 intervals of three calls, one of two
    expected = [1, 0.93447042, 0.86402982, 0.78741521, 0.00114221, 0.00034605]      # published: in float32
    close(fast[[0, 3, 6, 9, 45, 48]], torch.tensor(expected, dtype=torch.float64), 3e-3)
    close(fast[[0, 3, 6, 9]], torch.tensor(expected[:4], dtype=torch.float64), 1e-4)
    lam = vp.lam(vp.times(7, spacing="logsnr"))
    close(lam.diff(), lam.diff().mean().expand(7), 1e-9)
    close(vp.times(50), torch.linspace(1, 0.001, 51).double(), 1e-6)
    euler = vp.times(50, spacing="euler")
    assert len(euler) == 51 and euler[-1] == 0 and euler[-2] == pytest.approx(1e-3) and euler[0] == 1
    dpm = (linear.times(20, spacing="linspace") * 1000 - 1).round().int().tolist()
    assert dpm[:4] == [999, 949, 899, 849] and dpm[9:12] == [549, 500, 450] and dpm[-2:] == [50, -1]
    ddim = (linear.times(50, spacing="leading") * 1000 - 1).round().int().tolist()
    assert ddim[:2] == [981, 961] and ddim[-3:] == [21, 1, 0]
    for grid in (fast, euler, linear.times(20, spacing="linspace")):
        assert grid.dtype == torch.float64 and (grid.diff() < 0).all()


@pytest.mark.parametrize("name, call, message", [
    ("linear", ("ddim240",), "nearest: ddim200, ddim250"),
    ("linear", ("ddim",), "allowed are 'ddimN'"),
    ("linear", ("10,x",), "allowed are 'ddimN'"),
    ("linear", ("600,10",), "section 1 of 1000 steps has 500"),
    ("linear", (0,), "numbers from 1"),
    ("linear", (2000,), "fewer than 2000"),
    ("vpsde", ("ddim25",), "continuous"),
    ("vpsde", (0,), "whole numbers from 1"),
    ("sd", (1000, "leading"), "from 1 to 500"),
    ("sd", (10, "quadratic"), "known: respaced"),
    ("sd", ("ddim25", "uniform"), "whole numbers from 1"),
])
def test_times_refuse(name, call, message):
    with pytest.raises(ValueError, match=message):
        schedule(name).times(call[0], spacing=(call + (None,))[1])


def test_unknown_schedule_and_value():
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        schedule("cosin")
    with pytest.raises(ValueError, match="lam"):
        schedule("sd").t_of_lam(-3.0)
    with pytest.raises(ValueError, match="slice the times"):
        schedule("sd").times("ddim25", start=0.5)


def test_training_times():
    generator = torch.Generator().manual_seed(0)
    t = schedule("vpsde").sample_times(4000, generator=generator)
    assert t.dtype == torch.float64 and 0 <= t.min() and t.max() < 1 and abs(t.mean() - 0.5) < 0.02
    n = schedule("sd", steps=8).sample_times(4000, generator=generator) * 8
    assert sorted(set(n.tolist())) == list(range(1, 9)) and n.long().bincount()[1:].min() > 400
    noise = schedule("linear")
    kept = noise.sample_times(500, times=noise.times("ddim25"), generator=generator)
    assert set(kept.tolist()) == set(noise.times("ddim25")[:-1].tolist())
    assert torch.equal(noise.network_time(kept).float() % 40, torch.zeros(500))     # the original's indices
