"""Exported folders: diffusers alone makes the same images from them, and our scripts sample from them too."""

import json
import os
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
import torch
from PIL import Image

from configs import phantom32_unet_label
from libs import backbones, codecs, diffusion, engine, evaluation
from libs.data.masks import MaskCode
from libs.evaluation import masks
from libs.pipeline import Pipeline, build_net, exporting, image_generator

SMALL = dict(block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
             down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
NAMES = ["naevus", "melanoma", "keratosis"]
ALONE = """
import sys, torch
from diffusers import ControlNetModel, DiffusionPipeline, UNet2DConditionModel
assert "libs" not in sys.modules
for number, call in enumerate(torch.load(sys.argv[1], weights_only=True)):
    pipe = DiffusionPipeline.from_pretrained(call["folder"], trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    parts = [UNet2DConditionModel.from_pretrained(call["folder"], subfolder="unet")]
    if pipe.controlnet is not None:
        parts.append(ControlNetModel.from_pretrained(call["folder"], subfolder="controlnet"))
    for part in parts:
        own = (pipe.unet if len(part.state_dict()) == len(pipe.unet.state_dict()) else pipe.controlnet).state_dict()
        assert all(torch.equal(value, own[name]) for name, value in part.state_dict().items())
    generators = [torch.Generator().manual_seed(seed) for seed in call["seeds"]]
    images = pipe(**call["asked"], generator=generators, output_type="pt").images
    error = (images * 2 - 1 - call["images"]).abs().max().item()
    assert (call["images"].abs() < 1).float().mean() > 0.9  # not clipped
    assert images.shape == call["images"].shape and error < 1e-4, (number, images.shape, error)
    picture = pipe(class_label=call["asked"].get("class_label"), mask=call["asked"].get("mask"), num_inference_steps=2).images[0]
    assert picture.size == (images.shape[3], images.shape[2]), picture
print("same images")
"""


def _sampler(net, codec, *, algorithm="dpmpp_2m", spacing="linspace", guidance=2.0, schedule=None, predicts="eps", clip=False,
             steps=20, masks_as=None):
    """A Pipeline of a network whose weights are as far from zero as those of a trained one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.abs().max() == 0:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    config = ml_collections.ConfigDict(dict(
        nnet=dict(sample_size=net.shape[1], in_channels=net.shape[0]), denoiser=dict(predicts=predicts, clip=clip),
        sample=dict(algorithm=algorithm, sample_steps=steps, guidance=guidance, spacing=spacing, controlnet_scale=0.7)))
    null = {"label": torch.tensor(3)} if "label" in net.takes else {}
    return Pipeline(net.eval(), config, codec=codec, schedule=diffusion.schedule(**(schedule or dict(name="linear"))), null=null,
                    masks_as=masks_as)


def unet(side=8, channels=4, **more):
    torch.manual_seed(0)
    return backbones.get("unet_label", sample_size=side, in_channels=channels, out_channels=channels,
                         **dict(num_classes=3) | SMALL | more)


def control(widths=(8, 16), side=8, channels=4, **more):
    torch.manual_seed(0)
    return backbones.get("controlnet", sample_size=side, in_channels=channels, out_channels=channels,
                         conditioning_embedding_out_channels=widths, **dict(num_classes=3) | SMALL | more)


@pytest.fixture(scope="module")
def kl():
    torch.manual_seed(0)
    return codecs.get("kl", scale_factor=0.3, ddconfig=dict(
        double_z=True, z_channels=4, resolution=16, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1], num_res_blocks=1,
        attn_resolutions=[], dropout=0.0))


def test_diffusers_alone_makes_the_same_images(tmp_path, kl):
    """Latents and pixels, classes and masks, both samplers, both linear schedules; in a process without this project."""
    mask = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    classes = np.random.default_rng(0).integers(0, 3, (8, 8))
    three = MaskCode((0, 7, 200))
    Image.fromarray(np.array([0, 7, 200], np.uint8)[classes]).save(tmp_path / "mask.png")
    label, sd = torch.tensor([1, 3]), dict(name="sd", shift=-1)
    cases = [  # sampler, its conditions, what the exported pipeline is asked
        (_sampler(unet(adaptive_norm=True), kl), {"label": label}, dict(class_label=["melanoma", None])),
        (_sampler(unet(), kl, algorithm="ddim", spacing="leading", steps=10, schedule=sd, predicts="v"), {"label": label},
         dict(class_label=[1, 3])),
        (_sampler(unet(channels=1, num_classes=-1), codecs.get("pixels"), guidance=1.0, predicts="x0", clip=True,
                  schedule=dict(name="cosine")), {}, dict(num_images=2)),
        (_sampler(control(conditioning_channels=1), kl, masks_as=MaskCode((0, 255), names=("skin", "lesion"))),
         {"label": label, "mask": mask}, dict(class_label=["melanoma", None], mask=mask)),
        (_sampler(control((8,), channels=3, conditioning_channels=3, adaptive_norm=True), codecs.get("pixels"), masks_as=three,
                  guidance=1.0, predicts="x0"),
         {"label": torch.tensor([0, 0]), "mask": three.tensor(classes)[None].expand(2, -1, -1, -1)},
         dict(class_label="naevus", mask=str(tmp_path / "mask.png"), num_images=2)),
        (_sampler(control(conditioning_channels=3, legacy=True, num_classes=-1), kl, guidance=1.0), {"mask": mask},
         dict(mask=[mask[0], mask[1]], num_inference_steps=20, guidance_scale=1.0)),
    ]
    calls = []
    for number, (sampler, cond, asked) in enumerate(cases):
        folder = exporting.export(tmp_path / f"{number}/pipeline", sampler, NAMES)
        seeds = [image_generator(5, index).initial_seed() for index in range(2)]
        calls.append(dict(folder=str(folder), asked=asked, seeds=seeds, images=sampler(cond, seed=5, indices=range(2)).cpu()))
        weights, step, _ = engine.load_weights(folder)
        own = sampler.net.state_dict()
        assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)
        assert engine.class_names(folder) == (NAMES if "label" in sampler.takes else None)
        assert not list(folder.parent.glob(".*"))
    torch.save(calls, tmp_path / "calls.pt")
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "calls.pt")], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0 and "same images" in done.stdout, done.stderr[-3000:]

    readme = (tmp_path / "3/pipeline/README.md").read_text()
    for said in ("16 x 16 pixels, 3 channels", ", ".join(NAMES), "0 skin, 255 lesion", "trust_remote_code=True",
                 "class_label='naevus', mask=\"mask.png\", num_images=4", "20 steps with guidance 2"):
        assert said in readme
    index = json.loads((tmp_path / "3/pipeline/model_index.json").read_text())
    assert index["id2label"] == dict(zip("012", NAMES)) and index["mask_values"] == [0, 255] and index["controlnet_scale"] == 0.7


def test_schedulers_visit_our_times():
    """DPM-Solver++ at `linspace`, DDIM at `leading`; and the numbers of the original's own schedulers."""
    net, pixels = unet(channels=3), codecs.get("pixels")
    for algorithm, spacing, steps, ends in (("dpmpp_2m", "linspace", 20, [999, 949, 899, 150, 100, 50]),
                                            ("ddim", "leading", 50, [981, 961, 941, 41, 21, 1])):
        for name, schedule in (("linear", dict(name="linear")), ("scaled_linear", dict(name="sd", shift=-1))):
            sampler = _sampler(net, pixels, algorithm=algorithm, spacing=spacing, schedule=schedule)
            theirs = exporting.scheduler(sampler)
            assert theirs.config.beta_schedule == name
            theirs.set_timesteps(steps)
            ours = sampler.schedule.network_time(sampler.schedule.times(steps, spacing=spacing))
            assert theirs.timesteps.tolist() == ours[:-1].round().long().tolist()
            assert theirs.timesteps[[0, 1, 2, -3, -2, -1]].tolist() == ends
            kept = torch.tensor([sampler.schedule.alpha(n / 1000) ** 2 for n in range(1, 1001)])
            torch.testing.assert_close(theirs.alphas_cumprod, kept, rtol=1e-4, atol=0)


def test_what_diffusers_has_no_words_for(tmp_path, caplog):
    net, pixels = unet(channels=3), codecs.get("pixels")
    for schedule in (dict(name="vpsde"), dict(name="sd")):
        with pytest.raises(ValueError, match="config.schedule.shift=-1"):
            exporting.export(tmp_path / "new", _sampler(net, pixels, schedule=schedule, spacing=""), NAMES)
    assert not exporting.fault(_sampler(net, pixels))
    assert not list(tmp_path.iterdir())
    exporting.export(tmp_path / "new", _sampler(net, pixels, algorithm="ddpm", spacing="respaced", steps="25"), NAMES)
    assert "not by ddpm with spacing respaced as this run" in caplog.text
    caplog.clear()
    exporting.export(tmp_path / "new", _sampler(backbones.lower(net, torch.bfloat16), pixels), NAMES)
    assert "rounded" in caplog.text and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The exported pipeline in this process, for what it refuses."""
    folder = tmp_path_factory.mktemp("opened")
    sampler = _sampler(control((8,), channels=3, conditioning_channels=3), codecs.get("pixels"),
                       masks_as=MaskCode(((0, 0, 0), (255, 0, 0), (0, 0, 255))))
    exporting.export(folder / "masks", sampler, NAMES)
    sampler.config.dataset = {"crop": "pad"}
    exporting.export(folder / "padded", sampler, NAMES)
    exporting.export(folder / "plain", _sampler(unet(channels=3), codecs.get("pixels")), NAMES)
    patch = pytest.MonkeyPatch()
    patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder / "modules"))
    from diffusers import DiffusionPipeline
    yield [DiffusionPipeline.from_pretrained(folder / name, trust_remote_code=True) for name in ("masks", "plain", "padded")]
    patch.undo()


def test_the_exported_pipeline_refuses_what_it_cannot_do(opened):
    masks, plain, _ = opened
    index = np.eye(8, dtype=np.int64)
    for pipe, asked, problem in ((plain, dict(class_label="nevus"), "class_label='nevus'; known: naevus, melanoma, keratosis"),
                                 (plain, dict(class_label=4), "class_label=4"),
                                 (plain, dict(mask=index), "has no ControlNet"),
                                 (plain, dict(latents=torch.zeros(2, 3, 8, 8)), r"latents of shape \(2, 3, 8, 8\), not \(1, 3"),
                                 (masks, dict(class_label=0), "give mask="),
                                 (masks, dict(mask=3 * index), r"integers \(8, 8\) in 0 .. 3; expected \(H, W\) in 0 .. 2"),
                                 (masks, dict(mask=torch.ones(1, 8, 8)), r"shape \(1, 1, 8, 8\); expected \(3, 8, 8\)"),
                                 (masks, dict(mask=[index] * 2, class_label=[0, 1, 2]), "3 class labels and 2 masks"),
                                 (masks, dict(mask=Image.new("RGB", (8, 8), (0, 9, 0))), r"1 values beside .*\(0, 9, 0\)")):
        with pytest.raises(ValueError, match=problem):
            pipe(num_inference_steps=2, **asked)


def test_the_exported_pipeline_reads_pictures_as_we_do(opened, tmp_path):
    """A larger picture in colours: its middle square, by nearest pixels."""
    pipe = opened[0]
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    classes = np.random.default_rng(1).integers(0, 3, (8, 8))
    wide = np.zeros((16, 32), np.int64)
    wide[:, 8:24] = classes.repeat(2, 0).repeat(2, 1)
    Image.fromarray(colours[wide]).save(tmp_path / "wide.png")
    code = MaskCode(tuple(map(tuple, colours.tolist())))
    wanted = code.tensor(classes.astype(np.uint8))
    assert torch.equal(pipe._masks(tmp_path / "wide.png")[0], wanted)
    assert torch.equal(pipe._masks(classes)[0], wanted)
    assert torch.equal(pipe._masks([Image.open(tmp_path / "wide.png"), wanted]), torch.stack([wanted, wanted]))
    for size in ((17, 35), (35, 17), (8, 3), (50, 21), (20, 20)):  # as sample.py reads them, rounding and padding too
        Image.fromarray(colours[np.random.default_rng(2).integers(1, 3, size)]).save(tmp_path / "odd.png")
        for pipe, crop in ((opened[0], "center"), (opened[2], "pad")):
            ours = masks.of_files("odd.png", [masks.MaskFile(tmp_path / "odd.png", "odd.png", "")], [0], code, side=8, crop=crop)
            assert torch.equal(pipe._masks(tmp_path / "odd.png"), ours[[0]])


def test_a_run_is_exported_and_sampled_from(tmp_path, inside, caplog):
    """By the command line; then sample.py's way to open a network makes the run's images from the folder."""
    config = phantom32_unet_label.get_config()
    with config.unlocked():
        config.nnet.update(dict(block_out_channels=(8, 16, 16), cross_attention_dim=8, norm_num_groups=4))
        config.sample.update(dict(sample_steps=3, guidance=2.0))
        config.train.mixed_precision = "no"
    run = engine.start(config, tmp_path / "run")
    names = ["nevus", "melanoma", "seborrheic keratosis", "angioma"]
    run.record("classes.json", names, fixed=True)
    torch.manual_seed(3)
    net = build_net(config, names)
    state = engine.State(run, net, optimizer=config.optimizer, lr_scheduler=config.lr_scheduler, n_steps=1_000)
    run.describe()
    state.save(run.folder / "ckpts", keep=1)
    run.finish()

    done = inside("scripts/export_pipeline.py", f"--workdir={tmp_path}/run", f"--output_path={tmp_path}/out")
    assert f"pipeline in {tmp_path}/out" in done.stdout and "ckpts/0.ckpt, step 0" in done.stdout
    run = engine.start(config, tmp_path / "elsewhere", claim=False)
    opened = [evaluation.open_trained(run, config, workdir, path, with_data=False)
              for workdir, path in ((tmp_path / "run", ""), (tmp_path / "elsewhere", tmp_path / "out"))]
    assert opened[1].classes == names
    label = {"label": torch.tensor([0, 3])}
    first, second = (each.sampler(label, seed=1, indices=range(2)) for each in opened)
    assert torch.equal(first, second) and first.std() > 0.1
    run.finish()

    config.schedule = dict(name="vpsde")  # may be trained on, and ends without a pipeline
    run = engine.start(config, tmp_path / "run", claim=False)
    evaluation.warn_unexportable(run, evaluation.open_trained(run, config, tmp_path / "run", "", with_data=False).sampler)
    evaluation.export_best(run, config)
    assert "pipeline will not be written at the end: diffusers" in caplog.text and "pipeline is not written" in caplog.text
    assert not (tmp_path / "run" / "pipeline").exists()
    run.finish()
