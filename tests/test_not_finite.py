"""Pixels, latents and weights that are nan or infinite: errors that name the image, the step and the file;
never black images."""


import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file

from libs import codecs, diffusion, evaluation, pipeline
from libs.codecs import Spread
from libs.evaluation import generation
from tests.test_weights_used import TINY


class Bad(torch.nn.Module):
    """A network of labels whose prediction becomes `value` for one class from the third call on."""

    takes = ("label",)

    def __init__(self, value=float("nan"), label=1):
        super().__init__()
        self.weight, self.value, self.label, self.calls = torch.nn.Parameter(torch.zeros(1)), value, label, 0

    def forward(self, x, t, label):
        self.calls += 1
        out = 0.1 * x
        if self.calls >= 3:
            out = torch.where((label == self.label)[:, None, None, None], torch.full_like(out, self.value), out)
        return out


def config(**sample):
    return ConfigDict(dict(seed=0, nnet=dict(in_chans=1, img_size=4), denoiser=dict(predicts="eps"),
                           sample=dict(algorithm="ddim", sample_steps=5, mini_batch_size=4, **sample)))


def sampler(net):
    found = pipeline.Pipeline(net, config(), codec=codecs.get("pixels"), schedule=diffusion.schedule("linear"),
                              null={"label": torch.tensor(2)})
    found.classes = ["nevus", "melanoma"]
    return found


def of_one_process():
    from contextlib import nullcontext
    from types import SimpleNamespace
    return SimpleNamespace(rank=0, world=1, is_main=True, accelerator=SimpleNamespace(autocast=nullcontext), gather_rows=lambda x: x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_image_class_and_step_are_named(value):
    made = sampler(Bad(value))
    with pytest.raises(pipeline.NotFinite, match=r"image 12 \(seed 7, class 'melanoma'\).*first not finite "
                                                 r"at step 1 of 5.*--nnet_path") as error:
        made({"label": torch.tensor([0, 1])}, seed=7, indices=[11, 12])  # made again alone, where each call is one from the third on
    assert error.value.rows == [1] and made._watch is None


def test_the_step_is_counted_from_the_start_of_the_sampler():
    class Late(Bad):
        def forward(self, x, t, label):
            return torch.where(t[:, None, None, None] < 500, torch.full_like(x, float("nan")), 0.1 * x)
    with pytest.raises(pipeline.NotFinite, match=r"at step 4 of 5 \(t = 0.251\)"):
        sampler(Late())({"label": torch.tensor([0])}, seed=0, indices=[0])


def test_a_decoder_that_overflows_is_told_from_the_network():
    class Wide(torch.nn.Module):
        def decode(self, z):
            return z * float("inf")

        def image_shape(self, shape):
            return shape
    made = sampler(Bad(0.0))
    made.codec = Wide()
    with pytest.raises(pipeline.NotFinite, match="all 5 steps of the sampler gave finite values, and the "
                                                 "decoder did not"):
        made({"label": torch.tensor([0])}, seed=0, indices=[0])


def test_advice_follows_the_precision():
    with pytest.raises(pipeline.NotFinite, match="bfloat16.*--config.train.mixed_precision=no"), torch.autocast("cpu", torch.bfloat16):
        sampler(Bad())({"label": torch.tensor([1])}, seed=0, indices=[0])


def test_the_description_is_named():
    class Texts(torch.Tensor):
        pass
    cond = {"label": torch.tensor([1])}
    cond["text"] = torch.zeros(1, 1).as_subclass(Texts)
    cond["text"].texts = ["a red mole"]
    with pytest.raises(pipeline.NotFinite, match="'a red mole'"):
        generation.make(of_one_process(), sampler(Bad()), cond, [0], seed=0)


def test_no_cast_makes_black_of_nan():
    images = torch.zeros(3, 1, 2, 2)
    assert pipeline.to_uint8(images).unique().tolist() == [128]
    images[2, 0, 1, 1] = float("nan")
    with pytest.raises(pipeline.NotFinite, match="image scan.png: pixels are not finite"):
        pipeline.to_uint8(images, lambda row: {2: "scan.png"}[row])
    images[2] = -float("inf")
    with pytest.raises(FloatingPointError, match="no. 2 of a batch of 3"):
        pipeline.to_uint8(images)


def test_previews_and_scores_of_a_training_are_skipped(caplog):
    cfg, made = config(labels="balanced"), sampler(Bad())
    preview = evaluation.previewer(of_one_process(), made, cfg)
    assert preview(None, 5) is None and "no preview of step 5" in caplog.text and "class 'melanoma'" in caplog.text


def test_a_bridge_names_what_it_cannot_encode():
    made = sampler(Bad())
    with pytest.raises(pipeline.NotFinite, match="encoding to noise") as error:
        made.encode(torch.zeros(2, 1, 4, 4), {"label": torch.tensor([0, 1])})
    assert error.value.rows == [1]
    made = sampler(Bad())
    with pytest.raises(pipeline.NotFinite, match="decoding gave pixels"):
        made.decode(torch.zeros(2, 1, 4, 4), {"label": torch.tensor([0, 1])})


def test_latents_that_are_not_finite_have_no_scale():
    with pytest.raises(ValueError, match="not finite"):
        Spread.of(torch.tensor([[4.0, float("nan"), 1.0]], dtype=torch.float64))


@pytest.fixture(scope="module")
def run(inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite") / "run"
    inside("train.py", *TINY, "--config.train.n_steps=2", f"--workdir={folder}")
    return folder


@pytest.mark.parametrize("script", ["sample.py", "eval.py"])
def test_weights_are_checked_where_they_are_read(inside, run, tmp_path, script):
    weights = load_file(run / "ckpts" / "2.ckpt" / "nnet.safetensors")
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    more = ("--label=all",) if script == "sample.py" else ("--config.metrics.features=('colour',)",)
    failed = inside(script, f"--workdir={run}", f"--nnet_path={tmp_path}/nan.safetensors", *more, f"--config.sample.path={tmp_path}/out",
                    fails=True)
    assert name in failed.stderr and "nan.safetensors" in failed.stderr and "1 of" in failed.stderr
    assert not list(tmp_path.rglob("*.png")), "no black image is kept"


def test_good_images_stay_and_the_run_goes_on(inside, run, tmp_path, monkeypatch):
    """Of 16 images in batches of 2, the eleventh overflows."""
    sample = ("sample.py", f"--workdir={run}", "--n_samples=16", f"--config.sample.path={tmp_path}/out", "--config.sample.mini_batch_size=2")
    whole = pipeline.Pipeline.__call__

    def broken(self, cond, *, seed, indices):
        if 10 in indices:
            raise pipeline.NotFinite("image 10 (seed 0) has pixels that are not finite", [indices.index(10)])
        return whole(self, cond, seed=seed, indices=indices)
    monkeypatch.setattr(pipeline.Pipeline, "__call__", broken)
    failed = inside(*sample, fails=True)
    assert "image 10" in failed.stderr and "(NotFinite" not in failed.stderr, "an error in words"
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("0*.png")}
    assert len(before) == 10 and not (tmp_path / "out" / "metadata.csv").exists()
    monkeypatch.undo()
    inside(*sample)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("0*.png")}
    assert len(after) == 16 and all(after[name] == before[name] for name in before)


def test_an_archive_is_not_left_half(inside, run, tmp_path, monkeypatch):
    def broken(self, cond, *, seed, indices):
        raise pipeline.NotFinite("image 0 has pixels that are not finite", [0])
    monkeypatch.setattr(pipeline.Pipeline, "__call__", broken)
    inside("eval.py", f"--workdir={run}", "--config.sample.n_samples=4", "--config.metrics.features=('colour',)",
           f"--npz={tmp_path}/all.npz", fails=True)
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_with_nan_is_named(tmp_path):
    from diffusers import AutoencoderKL
    net = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16)
    net.decoder.conv_in.bias.data[0] = float("inf")
    net.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="vae.*not finite.*decoder.conv_in.bias"):
        codecs.get("kl", path=str(tmp_path / "vae"))
