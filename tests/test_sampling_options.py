"""Samplers and what they are given: one image of every config with each of its samplers, every sampler on every schedule and
spacing, and what is refused when a pipeline is built, in words that work when typed."""

import itertools
import math
import re

import pytest
import torch

from configs.common import gradient
from libs import diffusion, extraction, pipeline
from libs.diffusion import samplers
from libs.diffusion.grids import OF_STEPS, SPACINGS, OptionError
from libs.pipeline import colour
from tests import tiny_networks
from tests.test_configs import CONFIGS, NETWORKS

SCHEDULES = {name: diffusion.schedule(name) for name in ("vpsde", "vpsde_cosine", "sd", "linear", "cosine")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{config: folder of the pipeline that its network begins with}."""
    made = {}
    for name, config in NETWORKS.items():
        if "path" in config.nnet:
            made[name] = tiny_networks.save_pipeline(config, tmp_path_factory.mktemp("models") / name)
    return made


def count_calls(made):
    """The list to which each call of the network of a pipeline adds its number of rows."""
    rows = []
    made.net.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("section", ["sample", "metrics"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_config_makes_an_image_with_each_of_its_samplers(name, section, folders):
    config = tiny_networks.shrink(NETWORKS[name], folders.get(name))
    published = config[section].sample_steps
    config.sample.sample_steps = config.metrics.sample_steps = 4
    made, cond = tiny_networks.build(config, *([config.metrics.algorithm, 4] if section == "metrics" else []))
    rows = count_calls(made)
    images = made(cond, seed=0, indices=[0])
    assert images.shape == (1, *made.image_shape) and images.isfinite().all() and images.std() > 0
    assert made.algorithm == config[section].algorithm and made.calls == len(rows) == 4
    # at the published number of steps too; their times are made when the pipeline is built
    assert pipeline.sampling.make_sampler(
        NETWORKS[name], made.schedule, **(dict(algorithm=config.metrics.algorithm, steps=published) if section == "metrics" else {})
    ).calls == published


@pytest.mark.parametrize("name", ["imagenet64_adm", "folder128_adm"])
def test_the_published_respacings(name):
    """250 of 1,000 steps: evenly with both ends (guided-diffusion's "250"), and every fourth from the first (MGDM's "ddim250")."""
    made, cond = tiny_networks.build(tiny_networks.shrink(NETWORKS[name]))
    steps = [round(t * 1000) - 1 for t in made.prepared.times[:-1].tolist()]
    assert steps == [round(i * 999 / 249) for i in reversed(range(250))] if name == "imagenet64_adm" else \
        steps == list(range(996, -1, -4))
    rows = count_calls(made)
    assert made(cond, seed=0, indices=[0]).isfinite().all() and len(rows) == 250


def expected_fault(name, schedule, spacing):
    """Why a sampler cannot be on these times of a schedule: written out by hand, '' where it can."""
    if schedule.startswith("vpsde") and spacing in ("respaced", "stride", "leading", "linspace"):
        return "continuous schedule has no steps"
    if name in ("dpm_solver", "dpmpp_fast") and spacing in ("respaced", "stride", "linspace", "euler"):
        return "end at 0"
    return ""


@pytest.mark.parametrize("name, schedule", list(itertools.product(samplers.SAMPLERS, SCHEDULES)))
def test_every_sampler_on_every_schedule_and_spacing(name, schedule):
    noise = SCHEDULES[schedule]

    def denoise(x, t):
        """Exact for data N(0, 0.5^2)."""
        alpha, sigma = noise.alpha(t), noise.sigma(t)
        eps = sigma * x / (0.25 * alpha ** 2 + sigma ** 2)
        return diffusion.denoiser.Estimate((x - sigma * eps) / alpha, eps)

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for spacing in ("", *SPACINGS):
        fault = expected_fault(name, schedule, spacing)
        if fault:
            with pytest.raises(OptionError, match=fault) as caught:
                samplers.make(name, 20, spacing, noise)
            assert "spacing" in caught.value.options and {"spacing": ""} in caught.value.ways
            continue
        made = samplers.make(name, 20, spacing, noise)
        calls = []
        out = made(lambda x, t: calls.append(t) or denoise(x, t), x, generator=torch.Generator().manual_seed(1))
        assert len(calls) == made.calls == 20 and out.isfinite().all(), spacing
        # 20 steps of any solver are near the data; that of the noise leaves the path where steps in log(alpha/sigma) are large
        if not (spacing == "leading" or (name, spacing, schedule) == ("dpm_solver", "uniform", "cosine")):
            assert out.std().item() == pytest.approx(0.5, rel=0.45), (spacing, out.std())


def test_published_spacings():
    spacings = {name: [samplers.make(name, 10, "", SCHEDULES[schedule]).spacing for schedule in ("vpsde", "linear")]
             for name in samplers.SAMPLERS}
    assert spacings == {"ddim": ["uniform", "respaced"], "ddpm": ["uniform", "respaced"], "euler_maruyama_sde": ["euler"] * 2,
                     "euler_maruyama_ode": ["euler"] * 2, "dpm_solver": ["logsnr_fast"] * 2, "dpmpp_fast": ["uniform"] * 2,
                     "dpmpp_2m": ["logsnr", "linspace"]}


def test_options_that_ask_for_nothing_are_left_out_and_others_refused():
    linear, x = SCHEDULES["linear"], torch.randn(2, 3)

    def denoise(x, t):
        return diffusion.denoiser.Estimate(0.5 * x, 0.5 * x)

    for name, options in (("ddpm", {"eta": 0.0}), ("dpmpp_2m", {"eta": 0.0, "variance": ""}), ("ddim", {"variance": None})):
        plain, given = (samplers.run(name, denoise, x, linear, 5, generator=torch.Generator().manual_seed(0), **chosen)
                        for chosen in ({}, options))
        assert torch.equal(plain, given)
    for name, options, message in (("ddpm", {"eta": 0.5}, "ddpm takes no eta, here 0.5; it is an option of ddim"),
                                   ("dpmpp_2m", {"variance": "large"}, "takes no variance, here 'large'; it is an option of ddpm"),
                                   ("ddim", {"eta": 1.5}, "allowed are 0"), ("ddim", {"eta": "0.5"}, "allowed are 0"),
                                   ("ddpm", {"variance": "learnt"}, "'learned', 'small', 'large'"),
                                   ("ddim", {"order": 3}, "no option 'order'; known: eta, variance")):
        with pytest.raises(OptionError, match=message):
            samplers.make(name, 5, "", linear, **options)


def test_a_schedule_that_lacks_what_a_sampler_needs():
    class Line:
        """alpha = 1 - t, sigma = t: no beta, no posterior."""
        steps, start = None, 1.0
        alpha, sigma, lam = (lambda self, t: 1 - t), (lambda self, t: t), (lambda self, t: math.log((1 - t) / t))
        times = diffusion.schedule("vpsde").times

    assert samplers.make("ddim", 5, "", Line()).calls == 5
    for name, need in (("ddpm", "posterior"), ("euler_maruyama_ode", "beta")):
        with pytest.raises(OptionError, match=f"{name} needs {need} of a schedule, and Line has none") as caught:
            samplers.make(name, 5, "", Line())
        assert {"name": "ddim"} in caught.value.ways and {"name": "ddpm"} not in caught.value.ways
    with pytest.raises(OptionError, match="needs posterior"):
        samplers.make("ddim", 5, "", Line(), eta=0.5)


ADM, UVIT, DIT, KVASIR = "imagenet64_adm", "folder64_uvit_label", "folder64_dit_label", "kvasir512_pixart_lora"
# config, what is typed, what the message says, whether the previews' sampler is the faulty one
REFUSED = [
    (ADM, {"sample.eta": 0.5}, "config.sample.eta is 0.5", False),
    (ADM, {"sample.algorithm": "dpm_solver"}, "config.sample.spacing is 'respaced', config.sample.algorithm is 'dpm_solver'", False),
    (ADM, {"sample.sample_steps": 1001}, "config.sample.sample_steps is 1001", False),
    (ADM, {"metrics.sample_steps": 1001}, "config.metrics.sample_steps is 1001", True),
    (ADM, {"metrics.algorithm": "ddimm"}, "config.metrics.algorithm is 'ddimm'", True),
    (ADM, {"sample.algorithm": "ddim", "sample.eta": 2.0}, "config.sample.eta is 2.0", False),
    ("folder64_adm", {"sample.sample_steps": 99}, "config.sample.sample_steps is 99", False),
    ("folder64_adm", {"metrics.sample_steps": 240}, "config.metrics.sample_steps is 240", True),
    ("folder64_adm", {"sample.spacing": "strid"}, "config.sample.spacing is 'strid'", False),
    (UVIT, {"sample.algorithm": "dpmpp2m"}, "config.sample.algorithm is 'dpmpp2m'", False),
    (DIT, {"sample.spacing": "linspace", "sample.algorithm": "dpmpp_fast"}, "config.sample.spacing is 'linspace'", False),
    (DIT, {"sample.sample_steps": 1000}, "config.sample.sample_steps is 1000", False),
    (DIT, {"metrics.sample_steps": 1000}, "config.metrics.sample_steps is 1000", True),
    (KVASIR, {"sample.sample_steps": 1000}, "config.sample.sample_steps is 1000", False),
    ("folder128_adm", {"schedule.steps": 100}, "config.sample.sample_steps is 250", False),
    ("imagenet256_dit_xl2", {"sample.spacing": "leading", "sample.sample_steps": 501}, "config.sample.sample_steps is 501", False),
    ("phantom32_adm", {"schedule": {"name": "vpsde"}}, "config.sample.spacing is 'stride'", False),
]


@pytest.mark.parametrize("name, typed, message, previews", REFUSED)
def test_what_does_not_go_together_is_refused_before_training_and_the_advice_works(name, typed, message, previews, folders):
    config = tiny_networks.shrink(NETWORKS[name], folders.get(name))
    if "schedule" in typed:
        config.schedule = config.schedule.__class__(typed.pop("schedule"))
    config.update_from_flattened_dict(typed)
    with pytest.raises(ValueError) as caught:  # a training builds the pipeline of its previews
        tiny_networks.build(config, config.metrics.algorithm, config.metrics.sample_steps)
    text = str(caught.value)
    assert message in text
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline.check_samplers(config)
    if not previews:  # and sample.py that of its images
        with pytest.raises(ValueError, match=re.escape(message)):
            tiny_networks.build(config)
    advice = re.findall(r"--(config\.\S+?)=(\S*)", text.split(". Set ")[1])
    assert advice
    for option, value in advice:
        fixed, (section, key) = config.copy_and_resolve_references(), option.split(".")[1:]
        assert key in fixed[section], option
        fixed[section][key] = type(fixed[section][key])(value)
        pipeline.sampling.make_sampler(fixed, diffusion.schedule(**fixed.schedule),
                                       **(dict(algorithm=fixed.metrics.algorithm, steps=fixed.metrics.sample_steps) if previews
                                          else {}))


@pytest.mark.parametrize("algorithm", samplers.SAMPLERS)
@pytest.mark.parametrize("name", [ADM, "folder64_adm", UVIT, DIT, KVASIR])
def test_any_sampler_previews_any_config(name, algorithm, folders):
    """Spacing and eta of config.sample are of its own algorithm; another one takes the spacing it was published with."""
    config = tiny_networks.shrink(NETWORKS[name], folders.get(name))
    config.sample.sample_steps, config.metrics.algorithm, config.metrics.sample_steps = 4, algorithm, 5
    made, cond = tiny_networks.build(config, algorithm, 5)
    assert made(cond, seed=0, indices=[0]).isfinite().all() and made.calls == 5
    assert "eta" not in made.describe() and made.own["spacing"] == (
        config.sample.get("spacing", "") if algorithm == config.sample.algorithm else "")


def test_respacing_text_counts_its_calls():
    config = tiny_networks.shrink(NETWORKS["phantom32_adm"])
    with config.unlocked():
        config.sample.update(spacing="", algorithm="ddpm")
        for text, calls in (("ddim25", 25), ("10,15,20", 45), ("7", 7)):
            config.sample = config.sample.__class__({**config.sample.to_dict(), "sample_steps": text})
            made, cond = tiny_networks.build(config)
            assert made.calls == calls and made.steps == text
    rows = count_calls(made)
    assert made(cond, seed=0, indices=[0]).isfinite().all() and len(rows) == 7
    config.sample = config.sample.__class__({**config.sample.to_dict(), "sample_steps": "ddim99"})
    with pytest.raises(ValueError, match="config.sample.sample_steps is 'ddim99'.*no whole stride keeps 99 of 1000 steps"):
        tiny_networks.build(config)


def test_a_learned_variance_needs_a_network_that_learned_it():
    config = tiny_networks.shrink(NETWORKS["imagenet64_adm"])
    with config.unlocked():
        config.sample.variance = "learned"
    tiny_networks.build(config)
    config.denoiser.learned_var, config.nnet.out_channels = False, 3
    with pytest.raises(ValueError, match="config.sample.variance is 'learned'.*Set --config.sample.variance=small"):
        tiny_networks.build(config)


def test_legacy_numbers_of_steps_need_a_discrete_schedule_when_a_pipeline_is_loaded():
    section = gradient()
    section.legacy_steps = 250
    pipeline.steering.check(section, None, classes=["a"], shape=(1, 8, 8), schedule=SCHEDULES["linear"])
    with pytest.raises(ValueError, match="config.sample.gradient.legacy_steps is 250.*--config.sample.gradient.legacy_steps=0"):
        pipeline.steering.check(section, None, classes=["a"], shape=(1, 8, 8), schedule=SCHEDULES["vpsde"])


def test_the_loss_of_colours_needs_a_discrete_schedule():
    config = NETWORKS[KVASIR].copy_and_resolve_references()
    colour.check(config)
    config.schedule.name = "vpsde"
    with pytest.raises(ValueError, match="config.schedule.name is 'vpsde'.*--config.colour.every=0"):
        colour.check(config)


def test_the_order_of_another_classifier_follows_its_network():
    """gpu.md, point 5: an index on the CPU would be copied to the device at every guided step."""
    turned = pipeline.steering.Reordered(torch.nn.Linear(4, 3), torch.tensor([2, 0, 1]))
    assert "order" not in turned.state_dict()
    assert turned.to("meta").order.device.type == "meta" and turned.net.weight.is_meta


def test_spacings_and_configs_agree():
    assert set(OF_STEPS) < set(SPACINGS) and all(
        config.sample.get("spacing", "") in ("", *SPACINGS) for config in CONFIGS.values() if "algorithm" in config.get("sample", {}))


def test_one_schedule_in_the_place_of_another():
    """--config.schedule.name=vpsde on a config whose section has steps=1000: its usual value asks for nothing."""
    for name, config in NETWORKS.items():
        for other in SCHEDULES:
            made = diffusion.schedule(**{**config.schedule, "name": other})
            plain, ours = SCHEDULES[other], other == config.schedule.name
            assert ours or (type(made), made.steps) == (type(plain), plain.steps), name
    with pytest.raises(ValueError, match="'vpsde' takes no steps, here 500: it takes beta_min, beta_max; steps is an option of sd, lin"):
        diffusion.schedule("vpsde", steps=500)
    with pytest.raises(ValueError, match="'linear' takes no beta_start, here 0.01: it takes steps; beta_start is an option of sd$"):
        diffusion.schedule("linear", beta_start=0.01)
    with pytest.raises(ValueError, match="'cosine' takes no stepz"):
        diffusion.schedule("cosine", stepz=3)
    assert diffusion.schedule("sd", steps=500, shift=-1).steps == 500


@pytest.mark.parametrize("section", ["sample", "metrics"])
def test_samplers_are_checked_before_hours_of_encoding(section):
    config = NETWORKS["folder256_unet_label"].copy_and_resolve_references()
    config[section].sample_steps = 1000
    with pytest.raises(ValueError, match=f"config.{section}.sample_steps is 1000.*Set --config.{section}.sample_steps=999"):
        extraction.ready(None, config, None)
