"""What is typed wrong or read wrong ends in one line that names the option or the file, and says what to type."""

import errno
import re
import shutil
from pathlib import Path

import pytest

from libs import cli, config_options, pipeline
from tests.command_lines import config_of

UVIT = "configs/phantom32_uvit_label.py"
TINY = ("--config.train.n_steps=1", "--config.train.batch_size=2", "--config.train.eval_interval=0",
        "--config.train.preview_interval=0", "--config.train.validation_split=", "--config.dataset.size=8",
        "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.lr_scheduler.warmup_steps=0", "--config.train.workers=0",
        "--config.sample.sample_steps=1")
SETTINGS = ("mode", "batch_size", "mixed_precision", "compile", "attention", "workers", "balanced",
            "weighting", "p_uncond", "ema_rate",
            "ema_warmup", "grad_clip", "init", "validation_split", "validation_size")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tests.commands import call
    folder = tmp_path_factory.mktemp("runs") / "lesions"
    call("train.py", f"--config={UVIT}", *TINY, f"--workdir={folder}")
    return folder


def refusal(file, *options, settings=SETTINGS):
    with pytest.raises(ValueError) as error:
        config_of(file, *options, settings=settings)
    text = str(error.value)
    assert text.startswith("error: ") and "shows where" not in text
    return text.removeprefix("error: ")


@pytest.mark.parametrize("file, option, words", [
    (UVIT, "optimizer.betas=0.9",
     "config.optimizer.betas is (0.9,); it must be two numbers in [0, 1), such as \"(0.9,0.99)\""),
    (UVIT, "optimizer.betas=(0.9,0.9,0.9)", "it must be two numbers"),
    (UVIT, "optimizer.betas=abc", "it must be two numbers"),
    (UVIT, "optimizer.betas=()", "it must be two numbers"),
    (UVIT, "optimizer.betas=(0.9,1.0)", "two numbers in [0, 1)"),
    (UVIT, "optimizer.betas=('a','b')", "it must be two numbers"),
    (UVIT, "sample.guidance_interval=0.5",
     "config.sample.guidance_interval is (0.5,); it must be (from, to)"),
    (UVIT, "dataset.cast=1.0", "factors of red, green and blue"),
    ("configs/folder64_unet_label.py", "dataset.window=4095",
     "config.dataset.window is (4095,); it must be (low, high)"),
    ("configs/folder64_unet_label.py", "dataset.window=(0,1,2)", "(low, high) in raw grey levels"),
    ("configs/phantom32_unet_label.py", "nnet.block_out_channels=64",
     "give as many widths as down_block_types"),
    ("configs/phantom32_unet_label.py", "nnet.down_block_types=DownBlock2D",
     "down_block_types has 1 entries"),
    (UVIT, "metrics.features=5", "it must be texts, such as \"('classifier',)\"")])
def test_lists_of_another_length_or_kind(file, option, words):
    assert words in refusal(file, f"--config.{option}", settings=())


@pytest.mark.parametrize("option, words", [
    ("metrics.features=~/net,colour",
     "=~/net,colour is not a list: write it as --config.metrics.features=\"('~/net','colour')\""),
    ("metrics.features=a b", "write it as --config.metrics.features=\"('a b',)\""),
    ("sample.guidance_interval=0.1,0.5x", "write it as --config.sample.guidance_interval=\"(A,B)\""),
    ("metrics.n_samples=1e3", "--config.metrics.n_samples=1e3: a whole number is needed"),
    ("optimizer.lr=", "--config.optimizer.lr=: a number is needed"),
    ("nnet.use_checkpoint=maybe", "--config.nnet.use_checkpoint=maybe: True or False is needed"),
    ("train=5",
     "config.train is a section: set its options, --config.train.OPTION=VALUE; it has accumulation"),
    ("dataset=folder", "config.dataset is a section"), ("sample", "config.sample is a section"),
    ("seed=99999999999999999999",
     "config.seed is 99999999999999999999; it must be at most 9223372036854775807"),
    ("train.mixed_precision=fp17", "config.train.mixed_precision is 'fp17'; known: auto, no, fp16, bf16"),
    ("nnet.patch_size=0", "config.nnet.patch_size is 0; it must be greater than 0"),
    ("nnet.img_size=-8", "config.nnet.img_size is -8; it must not be negative"),
    ("seed=-1", "config.seed is -1; it must not be negative"),
    ("nnet.in_chans=-1", "config.nnet.in_chans is -1; it must not be negative"),
    ("dataset.name=", "data set name=''"), ("codec.name=kll", "kll")])
def test_values_that_no_option_takes(option, words):
    text = refusal(UVIT, f"--config.{option}")
    assert words in text and "invalid literal" not in text and "overwrite the value" not in text


def test_more_images_than_any_machine_makes(inside, trained):
    done = inside("sample.py", f"--workdir={trained}", "--n_samples=99999999999999999999", fails=True)
    assert done.stderr == "error: --n_samples=99999999999999999999: a whole number of at most 1000000000 is needed\n"


def test_the_list_that_a_message_writes_is_one():
    text = refusal(UVIT, "--config.metrics.features=classifier:net,colour")
    typed = re.search(r"write it as (--\S+?)=\"(.*)\"$", text)
    assert config_of(UVIT, f"{typed[1]}={typed[2]}").metrics.features == ("classifier:net", "colour")


def test_options_of_the_loop_that_a_config_leaves_out(tmp_path):
    (tmp_path / "own.py").write_text("from configs.phantom32_uvit_label import get_config as original\n\n\ndef get_config():\n"
                                     "    config = original()\n    del config.train.keep_checkpoints\n    return config\n")
    config = config_of(str(tmp_path / "own.py"), "--config.train.keep_checkpoints=7", settings=SETTINGS)
    assert config.train.keep_checkpoints == 7
    text = refusal(UVIT, "--config.train.more_ema_rates=(0.9,)")
    assert text.count("more_ema_rates") == 1, "an option of other scripts is not suggested here"


def test_two_configs():
    text = refusal(UVIT, "--config=configs/phantom32_dit_label.py")
    assert text == f"--config is given twice, as {UVIT} and as configs/phantom32_dit_label.py: leave one of them out"


@pytest.mark.parametrize("content, words", [
    ("x = 1\n", "it has no function get_config()"), ("import sys\nsys.exit(3)\n",
                                                     "ends by itself (SystemExit: 3)"),
    ("def get_config():\n    return {}['a']\n", "line 2: KeyError: 'a'"),
    ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
    ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
    ("def get_config(\n", "is no Python"),
    ("def get_config():\n    return 5\n", "get_config() returns no ConfigDict")])
def test_configs_of_one_s_own(tmp_path, content, words):
    (tmp_path / "own.py").write_text(content)
    text = refusal(str(tmp_path / "own.py"))
    assert text.startswith(f"--config={tmp_path / 'own.py'}") and words in text and "\n" not in text


@pytest.mark.parametrize("file, words", [("README.md", "is not a Python file"), ("configs",
                                                                                 "is a folder: name a file in it"),
                                         ("phantom32_uvit_label",
                                          'Did you mean "configs/phantom32_uvit_label.py"?')])
def test_what_is_no_config(file, words):
    assert words in refusal(file)


def test_an_option_that_a_script_does_not_have(inside, trained):
    done = inside("scripts/make_report.py", "--workdri=x", fails=True)
    assert done.stderr == 'error: --workdri: this script has no such option; it has --workdir. Did you mean "--workdir"?\n'
    done = inside("scripts/train_feature_network.py", f"--workdir={trained}", fails=True)
    assert done.stderr == "error: --workdir: this script has no such option; it has --config\n"
    done = inside("sample.py", f"--workdir={trained}", "--lable=all", fails=True)
    assert 'Did you mean "--label"?' in done.stderr and "--log_dir" not in done.stderr


def test_prompts_in_another_encoding(inside, trained, tmp_path):
    (tmp_path / "prompts.csv").write_bytes("prompt\nläsion\n".encode("latin-1"))
    (tmp_path / "prompts.txt").write_bytes("läsion\n".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError) as error:
        Path(tmp_path / "prompts.txt").read_text(encoding="utf-8")
    assert cli.describe_error(error.value) == (f"{tmp_path / 'prompts.txt'} is not text in UTF-8 (byte 2: invalid continuation byte). "
                                               "Save it as UTF-8, or give another file")
    done = inside("scripts/extract_test_prompt_feature.py", "--config=configs/mscoco_uvit_small.py",
                  f"--input_path={tmp_path / 'prompts.txt'}", fails=True)
    assert f"error: {tmp_path / 'prompts.txt'}: not UTF-8 text (byte 1): save it as UTF-8" in done.stderr


def test_files_in_place_of_folders(inside, trained, tmp_path):
    (tmp_path / "file").write_text("x")
    for name, *options in (("sample.py", f"--workdir={trained}", "--label=all",
                            f"--config.sample.path={tmp_path / 'file'}"),
                           ("scripts/export_images.py", f"--config={UVIT}", "--config.dataset.size=2",
                            f"--output={tmp_path / 'file'}")):
        done = inside(name, *options, fails=True)
        assert f"{tmp_path / 'file'} is a file where a folder is needed: choose another place, or take it away" in done.stderr
        assert "File exists'" not in done.stderr


def raised(error, **names):
    """What a user reads of an error that a function with these local names meets."""
    code = f"def failing({', '.join(names)}):\n    raise error\n"
    space = {"error": error}
    exec(code, space)
    try:
        space["failing"](**names)
    except Exception as caught:
        return cli.describe_error(caught)


def test_full_disks_say_where(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    text = raised(full, workdir=str(tmp_path))
    assert text.startswith(f"a file in {tmp_path} could not be written: no space is left on the disk (")
    assert f"MiB free at {tmp_path})" in text and text.endswith("give the same command again")
    named = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.png"))
    assert cli.describe_error(named).startswith(f"{tmp_path / 'a.png'} could not be written")
    text = raised(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert text.startswith("a file could not be written: no space is left on the disk. Make room"), "no other disk's free space"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
def test_a_device_that_is_always_full():
    with pytest.raises(OSError) as error, open("/dev/full", "w") as stream:
        stream.write("x" * 100_000)
    assert "no space is left on the disk" in cli.describe_error(error.value)


def test_a_network_that_no_pipeline_has(inside, trained):
    done = inside("scripts/export_pipeline.py", f"--workdir={trained}", fails=True)
    assert "diffusers has no network like UViT: only runs of unet_label, controlnet, unet_sd and pixart" in done.stderr


def test_captions_name_their_own_section(inside):
    done = inside("scripts/caption_images.py", "--config=configs/isic_captions.py", fails=True)
    assert "--config.input.path=" in done.stderr and "config.dataset" not in done.stderr


def test_classes_are_listed_as_they_are_typed():
    classes = ["all", "a, b=c", 'so "x"', "n"]
    with pytest.raises(ValueError, match=re.escape('known: all, "all", "a, b=c", "so ""x""", n')):
        pipeline.choose_labels("m", classes, 1, conditional=True)
    with pytest.raises(ValueError) as error:
        pipeline.count_labels("m=1", classes)
    listed = re.search(r"known: (.*?); write", str(error.value))[1]
    assert pipeline.count_labels(",".join(f"{name}=1" for name in ('"all"', '"a, b=c"', '"so ""x"""', "n")),
                                 classes) == [0, 1, 2, 3]
    assert listed == '"all", "a, b=c", "so ""x""", n'


def test_a_class_called_all_is_sampled_alone(inside, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    classes = (tmp_path / "run" / "classes.json").read_text()
    (tmp_path / "run" / "classes.json").write_text(classes.replace("nevus", "all").replace("melanoma",
                                                                                           "a, b=c"))
    for label, names in (('"all"', ["all"]), ("all", ["a, b=c", "all", "angioma", "dermatofibroma"]),
                         ("a, b=c", ["a, b=c"])):
        out = tmp_path / f"made{len(names)}{len(label)}"
        inside("sample.py", f"--nnet_path={tmp_path / 'run'}", f"--workdir={tmp_path / 'run'}",
               f"--label={label}", "--n_samples=1",
               f"--config.sample.path={out}")
        assert len(list(out.glob("0*.png"))) == len(names)
    inside("sample.py", f"--workdir={tmp_path / 'run'}", '--counts="a, b=c"=2,all=1',
           f"--config.sample.path={tmp_path / 'counted'}")
    assert len(list((tmp_path / "counted").glob("0*.png"))) == 3


def test_unlisted_options_are_those_of_the_script():
    assert "more_ema_rates" not in config_options._unlisted("train", ("init",))
    assert "init" in config_options._unlisted("train", ("init",))
