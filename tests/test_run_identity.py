"""Autoencoder, scale of latents and text encoder belong to a run: noted when it begins, compared whenever it
is opened."""

import csv
import json
import shutil

import pytest
import torch

from configs import folder256_controlnet, folder256_unet_label, isic256_dit_label
from libs import codecs, encoders, evaluation, pipeline
from libs.evaluation import identity
from tests import tiny_sd
from tests.test_class_ldm import adapted, options, place  # noqa: F401 (a fixture)

KL = dict(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
          norm_num_groups=8, latent_channels=4, sample_size=16)


def save_vae(folder, *, seed=0, scale=0.5, decoder_seed=None):
    """An untrained autoencoder; `decoder_seed` gives it another decoder behind the same encoder."""
    from diffusers import AutoencoderKL
    torch.manual_seed(seed)
    net = AutoencoderKL(**KL, scaling_factor=scale)
    if decoder_seed is not None:
        torch.manual_seed(decoder_seed)
        net.decoder.load_state_dict(AutoencoderKL(**KL).decoder.state_dict())
    shutil.rmtree(folder, ignore_errors=True)
    net.save_pretrained(folder)


def commands(place, root):  # noqa: F811
    """The options that train the run root/run on latents of root/vae."""
    config = adapted(folder256_unet_label.get_config(), place)
    config.codec.path = str(root / "vae")
    config.train.n_steps, config.train.preview_interval = 2, 0
    return "--config=configs/folder256_unet_label.py", f"--workdir={root}/run", *options(config)


@pytest.fixture(scope="module")
def begun(inside, place, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp("identity")
    save_vae(root / "vae")
    inside("train_class_ldm.py", *commands(place, root))
    return root


@pytest.fixture
def run(begun, place, tmp_path):  # noqa: F811
    """A copy of a run with its autoencoder beside it, and the options that train it."""
    for name in ("vae", "run"):
        shutil.copytree(begun / name, tmp_path / name)
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace(str(begun), str(tmp_path)))
    return tmp_path / "run", commands(place, tmp_path)


def sample(inside, run, out, *more, n=1, **how):
    return inside("sample.py", f"--workdir={run}", "--label=all", f"--n_samples={n}", f"--config.sample.path={out}", *more, **how)


def test_the_record_and_what_samples_say(inside, run, tmp_path):
    folder, _ = run
    record = json.loads((folder / "identity.json").read_text())
    codec = codecs.get("kl", path=str(tmp_path / "vae"))
    assert record == pipeline.trained_with(codec) and record["codec"]["scale_factor"] == 0.5 and record["encoder"] == {}
    assert record["codec"]["decoder"] == codec.decoder_fingerprint != codec.fingerprint
    sample(inside, folder, tmp_path / "out")
    with open(tmp_path / "out" / "metadata.csv") as stream:
        assert {row["autoencoder"] for row in csv.DictReader(stream)} == {identity.facts_of(record)["autoencoder"]}
    inside("eval_class_ldm.py", f"--workdir={folder}", "--config.sample.n_samples=4", "--config.metrics.features=('colour',)", "--name=x")
    assert json.loads((folder / "eval" / "x" / "scores.json").read_text())["autoencoder"] == identity.facts_of(record)["autoencoder"]


@pytest.mark.parametrize("change", [dict(seed=5), dict(decoder_seed=7), dict(scale=0.25)])
def test_another_autoencoder_in_its_place_is_refused(inside, run, tmp_path, change):
    folder, training = run
    sample(inside, folder, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    (tmp_path / "vae").rename(tmp_path / "kept")
    save_vae(tmp_path / "vae", **change)
    for name, more in (("sample.py", ("--label=all", f"--config.sample.path={tmp_path}/out")),
                       ("eval_class_ldm.py", ("--config.metrics.features=('colour',)",)),
                       ("scripts/export_pipeline.py", ())):
        failed = inside(name, f"--workdir={folder}", *more, fails=True).stderr
        assert "was trained with the autoencoder KL" in failed and "--config.codec.path=FOLDER" in failed, name
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")} == before
    failed = inside("train_class_ldm.py", *training, "--config.train.n_steps=4", fails=True).stderr
    assert "autoencoder" in failed or "codec.fingerprint" in failed
    # what the message says works: the autoencoder of the training, wherever it lies now
    done = sample(inside, folder, tmp_path / "again", f"--config.codec.path={tmp_path}/kept")
    assert "images in" in done.stdout
    assert all((tmp_path / "again" / name).read_bytes()[:8] for name in before)


def test_an_autoencoder_of_the_same_latents_may_be_chosen(inside, run, tmp_path):
    """Another decoder by name, as DiT's mse and ema: a warning, and other samples."""
    folder, _ = run
    sample(inside, folder, tmp_path / "out")
    before = (tmp_path / "out" / "000000_melanoma.png").read_bytes()
    save_vae(tmp_path / "mse", decoder_seed=7)
    done = sample(inside, folder, tmp_path / "out", f"--config.codec.path={tmp_path}/mse", n=2)
    assert "images are decoded otherwise than in the training" in done.stderr
    assert (tmp_path / "out" / "000000_melanoma.png").read_bytes() != before, "another request: no mixture of two decoders"
    with open(tmp_path / "out" / "metadata.csv") as stream:
        assert len({row["autoencoder"] for row in csv.DictReader(stream)}) == 1
    save_vae(tmp_path / "foreign", seed=3)
    failed = sample(inside, folder, tmp_path / "out", f"--config.codec.path={tmp_path}/foreign", fails=True)
    assert "the network knows other latents" in failed.stderr


def test_runs_of_earlier_versions(inside, run, tmp_path):
    """Without identity.json: codec.json, else the feature store, else one line."""
    folder, training = run
    (folder / "identity.json").unlink()
    assert "does not say" not in sample(inside, folder, tmp_path / "a").stderr
    save_vae(tmp_path / "vae", seed=5)
    assert "was trained with the autoencoder" in sample(inside, folder, tmp_path / "b", fails=True).stderr  # codec.json
    (folder / "codec.json").unlink()
    assert "was trained with the autoencoder" in sample(inside, folder, tmp_path / "b", fails=True).stderr  # the store
    shutil.rmtree(folder / "features")
    assert "this run does not say its autoencoder" in sample(inside, folder, tmp_path / "c").stderr
    assert not (folder / "identity.json").exists(), "what was not seen is not claimed"


def test_a_text_encoder_in_its_place_is_refused(tmp_path):
    words, other = encoders.get("words", max_length=6, dim=8), encoders.get("words", max_length=6, dim=16)
    codec = codecs.get("pixels")
    before, now = pipeline.trained_with(codec, words), pipeline.trained_with(codec, other)
    identity.refuse("run", before, before)
    with pytest.raises(ValueError, match="run was trained with the text encoder "
                                         "Words.*--config.encoder.path=FOLDER"):
        identity.refuse("run", before, now)
    assert "text_encoder" in identity.facts_of(now) and identity.facts_of(now) != identity.facts_of(before)
    assert identity.facts_of(pipeline.trained_with(codec)) == {}, "images of pixels stay the images they were"


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_of_a_pipeline_in_its_place_is_refused(inside, tmp_path, part):
    folder = tiny_sd.save(tmp_path / "sd")
    from PIL import Image
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    with open(data_folder / "metadata.csv", "w") as stream:
        stream.write("file_name,text\n")
        for i in range(8):
            Image.new("RGB", (16, 16), (30 * i, 0, 90)).save(data_folder / f"{i}.png")
            stream.write(f"{i}.png,{'red' if i % 2 else 'green'}\n")
    said = ("--config=configs/medical512_sd_finetune.py", f"--config.nnet.path={folder}", "--config.dataset.name=folder",
            f"--config.dataset.path={data_folder}", "--config.dataset.resolution=16", "--config.train.n_steps=1", "--config.train.batch_size=2",
            "--config.train.accumulation=1", "--config.train.preview_interval=0", "--config.train.eval_interval=0",
            "--config.train.validation_interval=0", "--config.train.validation_split=", "--config.train.workers=0",
            "--config.sample.sample_steps=2", "--config.train.mixed_precision=no", "--config.lr_scheduler.warmup_steps=0",
            f"--config.encoder.max_length={tiny_sd.WINDOW}", f"--workdir={tmp_path}/run", "--config.dataset.split=",
            "--config.dataset.text_column=text", "--config.nnet.sample_size=8")
    inside("train_sd_finetune.py", *said)
    record = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert record["codec"]["name"] == "KL" and record["encoder"]["fingerprint"]
    make = ("sample.py", f"--workdir={tmp_path}/run", "--prompt=red", "--n_samples=1", f"--config.sample.path={tmp_path}/out")
    inside(*make)
    other = tiny_sd.parts(seed=9)[part]
    shutil.rmtree(folder / part)
    other.save_pretrained(folder / part)
    failed = inside(*make, fails=True).stderr
    assert f"was trained with the {'autoencoder' if part == 'vae' else 'text encoder'}" in failed and "--config.nnet.path=FOLDER" in failed


def test_the_scale_of_own_data_is_the_autoencoder_s(tmp_path):
    for config in (folder256_unet_label, folder256_controlnet, isic256_dit_label):
        assert config.get_config().codec.scale_factor == 0.0
    save_vae(tmp_path / "vae", scale=0.93114)
    assert codecs.get("kl", path=str(tmp_path / "vae"), scale_factor=0.0).scale_factor == 0.93114


def test_the_scale_of_a_published_config_beside_another_autoencoder(tmp_path, caplog):
    save_vae(tmp_path / "vae", scale=0.93114)
    for given in (0.18215, 0.23010):
        codec = codecs.get("kl", path=str(tmp_path / "vae"), scale_factor=given)
        assert codec.scale_factor == given, "a run that was trained so can be sampled"
        assert f"config.codec.scale_factor={given:g} is used" in caplog.text and "says 0.93114" in caplog.text
        with pytest.raises(ValueError, match=rf"is {given:g}, .* says "
                                             rf"0.93114.*--config.codec.scale_factor=0\."):
            identity.check_scale(codec)
    caplog.clear()
    measured = codecs.get("kl", path=str(tmp_path / "vae"), scale_factor=0.8)  # scripts/compute_scale_factor.py's advice
    identity.check_scale(measured)
    assert "0.8 is used" in caplog.text
    caplog.clear()
    save_vae(tmp_path / "sd", scale=0.18215)
    for given in (0.0, 0.18215, 0.23010):  # the published number beside the published autoencoder; COCO's beside the same
        identity.check_scale(codecs.get("kl", path=str(tmp_path / "sd"), scale_factor=given))
    assert "0.2301 is used" in caplog.text and caplog.text.count("is used") == 1


def test_the_scale_of_stable_diffusion_is_not_that_of_taesd(tmp_path):
    from diffusers import AutoencoderTiny
    AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                    num_decoder_blocks=(1, 1)).save_pretrained(tmp_path / "taesd")
    with pytest.raises(ValueError, match=r"is 0.18215, .* says 1, .*--config.codec.scale_factor=0\."):
        identity.check_scale(codecs.get("tiny", path=str(tmp_path / "taesd"), scale_factor=0.18215))
    identity.check_scale(codecs.get("tiny", path=str(tmp_path / "taesd")))


def test_the_whole_line_from_ones_own_autoencoder(inside, place, tmp_path):  # noqa: F811
    """A training with the published number beside the folder of another scale does not begin; what the
    message says works."""
    save_vae(tmp_path / "vae", scale=0.93114)
    config = adapted(folder256_unet_label.get_config(), place)
    config.codec.path, config.train.n_steps, config.train.preview_interval = str(tmp_path / "vae"), 1, 0
    said = ("--config=configs/folder256_unet_label.py", f"--workdir={tmp_path}/run", *options(config))
    failed = inside("train_class_ldm.py", *said, "--config.codec.scale_factor=0.18215", fails=True).stderr
    assert "0.18215" in failed and "0.93114" in failed and "--config.codec.scale_factor=0." in failed
    inside("train_class_ldm.py", *said, "--config.codec.scale_factor=0.")
    assert json.loads((tmp_path / "run" / "identity.json").read_text())["codec"]["scale_factor"] == 0.93114


def test_an_older_run_of_a_given_scale_goes_on_with_it_only(inside, run):
    folder, training = run
    (folder / "identity.json").unlink()
    record = json.loads((folder / "config.json").read_text())
    record["codec"]["scale_factor"] = 0.18215  # as configs had it
    (folder / "config.json").write_text(json.dumps(record))
    failed = inside("train_class_ldm.py", *training, "--config.train.n_steps=3", fails=True).stderr
    assert "--config.codec.scale_factor=0.18215" in failed
    inside("train_class_ldm.py", *training, "--config.train.n_steps=3", "--config.codec.scale_factor=0.18215")


def test_a_first_stage_of_another_scale_is_refused(run, tmp_path):
    folder, _ = run
    config = adapted(folder256_controlnet.get_config(), tmp_path, ldm=str(folder))
    config.codec.path = str(tmp_path / "vae")
    evaluation.base_weights(config, ["melanoma", "nevus"], codecs.get(**config.codec))
    config.codec.scale_factor = 0.7
    with pytest.raises(ValueError, match="scale factor 0.5, here it is 0.7: set "
                                         "--config.codec.scale_factor=0.5"):
        evaluation.base_weights(config, ["melanoma", "nevus"], codecs.get(**config.codec))
