"""What a user types wrong, and what a machine refuses, end in one line that names the option or the file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from libs import cli, pipeline
from tests.command_lines import config_of
from tests.conftest import ROOT

TINY = ("--config.train.n_steps=1", "--config.train.batch_size=2", "--config.train.eval_interval=0", "--config.train.preview_interval=0",
        "--config.train.validation_split=", "--config.dataset.size=8", "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.lr_scheduler.warmup_steps=0", "--config.train.workers=0")
STEPS = "--config.sample.sample_steps=2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tests.commands import call
    folder = tmp_path_factory.mktemp("runs") / "lesions"
    call("train.py", "--config=configs/phantom32_uvit_label.py", *TINY, f"--workdir={folder}")
    return folder


def test_a_blank_stands_for_an_equals_sign(inside, trained, tmp_path):
    done = inside("sample.py", "--workdir", trained, "--label", "nevus", "--n_samples", "1", "--config.sample.sample_steps", "2",
                  "--config.sample.path", tmp_path / "made", "--seed", "3")
    assert len(list((tmp_path / "made").glob("*nevus*.png"))) == 1 and "1 images in" in done.stdout
    inside("scripts/make_report.py", "--workdir", trained)
    config = config_of("", "--workdir", str(trained), "--config.train.balanced", "--config.sample.guidance", "2",
                       "--noconfig.train.compile")
    assert config.train.balanced is True and config.sample.guidance == 2.0 and config.train.compile is False


@pytest.mark.parametrize("more", [(), ("--config.sample.guidance=2",), ("--label", "all")])
@pytest.mark.parametrize("name", ["sample.py", "eval.py", "scripts/export_pipeline.py"])
def test_a_mistyped_run_folder_is_named_and_the_nearest_suggested(inside, trained, name, more):
    if name != "sample.py":
        more = tuple(part for part in more if "label" not in part and part != "all")
    done = inside(name, f"--workdir={trained}s", *more, fails=True)
    assert f'--workdir={trained}s does not exist. Did you mean "{trained}"?' in done.stderr
    assert "--config is missing" not in done.stderr and "--config=FILE is missing" not in done.stderr


def test_folders_that_are_no_runs(inside, trained, tmp_path):
    done = inside("sample.py", "--workdir", tmp_path, fails=True)
    assert f"--workdir={tmp_path} holds no config.json, so that it is no run" in done.stderr
    done = inside("sample.py", f"--workdir={trained.parent}", fails=True)
    assert f'Did you mean "{trained}"' in done.stderr, "the folder above"
    wrong_above = f"{trained.parent}x/lesions"
    done = inside("sample.py", f"--workdir={wrong_above}", fails=True)
    assert f'Did you mean "{trained}"' in done.stderr
    done = inside("train.py", f"--workdir={trained}2", fails=True)
    assert "--config=FILE is missing" in done.stderr and str(trained) in done.stderr, "a training may begin there"
    done = inside("sample.py", fails=True)
    assert "--config=FILE is missing: name a file in configs/, or give the --workdir of a run" in done.stderr
    done = inside("scripts/make_report.py", f"--workdir={trained}s", fails=True)
    assert f'--workdir={trained}s does not exist. Did you mean "{trained}"?' in done.stderr


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"seed": 1,,}', "\x00\x01"])
def test_a_damaged_config_of_a_run_is_named(inside, trained, tmp_path, text):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "config.json").write_text(text)
    done = inside("sample.py", f"--workdir={run}", fails=True)
    assert f"{run}/config.json is damaged (" in done.stderr and "--config=configs/" in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_configs_that_are_missing_or_no_python(inside, tmp_path):
    done = inside("train.py", "--config=configs/folder64_uvit_lable.py", fails=True)
    assert 'no such file. Did you mean "configs/folder64_uvit_label.py"?' in done.stderr
    (tmp_path / "own.py").write_text("def get_config():\n    return {\n")
    done = inside("train.py", f"--config={tmp_path / 'own.py'}", fails=True)
    assert f"--config={tmp_path / 'own.py'}: line 2 is no Python" in done.stderr
    (tmp_path / "own.py").write_text("def get_config():\n    return nothing\n")
    done = inside("train.py", f"--config={tmp_path / 'own.py'}", fails=True)
    assert "own.py, line 2: NameError: name 'nothing' is not defined" in done.stderr
    (tmp_path / "config.json").write_text("{}")
    done = inside("train.py", f"--config={tmp_path / 'config.json'}", fails=True)
    assert f"give its folder, --workdir={tmp_path}" in done.stderr


@pytest.mark.parametrize("section", ["metrics", "optimizer", "sample", "codec"])
def test_a_config_of_one_s_own_without_a_section(inside, tmp_path, section):
    (tmp_path / "own.py").write_text("from configs.phantom32_uvit_label import get_config as original\n\n\ndef get_config():\n"
                                     f"    config = original()\n    del config.{section}\n    return config\n")
    done = inside("train.py", f"--config={tmp_path / 'own.py'}", *TINY, f"--workdir={tmp_path / 'run'}", fails=True)
    assert f"config.{section}" in done.stderr and "Traceback" not in done.stderr
    assert "AttributeError" not in done.stderr and not (tmp_path / "run").exists()


def test_a_section_that_only_an_evaluation_reads(inside, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    content = json.loads((run / "config.json").read_text())
    del content["metrics"]
    (run / "config.json").write_text(json.dumps(content))
    done = inside("eval.py", f"--workdir={run}", fails=True)
    assert "config.metrics" in done.stderr and "AttributeError" not in done.stderr


@pytest.mark.parametrize("options, words", [
    (("--seed=-1",), "--seed=-1: a whole number of at least 0 is needed"),
    (("--n_samples=0",), "--n_samples=0: a whole number of at least 1 is needed"),
    (("--n_samples=-3",), "--n_samples=-3: a whole number of at least 1 is needed"),
    (("--n_samples=few",), "--n_samples=few"), (("--sead=1",), "sead"), (("stray",), "unexpected argument 'stray'"),
    (("--config.seed=-1",), "config.seed is -1; it must not be negative"),
    (("--config.sample.sample_steps=many",), "--config.sample.sample_steps=many: a whole number is needed")])
def test_options_out_of_range_are_named(inside, trained, options, words):
    done = inside("sample.py", f"--workdir={trained}", *options, fails=True)
    assert words in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr


def test_the_default_number_of_images_stays(inside, trained, tmp_path):
    done = inside("sample.py", f"--workdir={trained}", STEPS, f"--config.sample.path={tmp_path}")
    assert "16 images in" in done.stdout


def test_a_file_in_place_of_the_run_folder(inside, tmp_path):
    (tmp_path / "run").write_text("x")
    done = inside("train.py", "--config=configs/phantom32_uvit_label.py", *TINY, f"--workdir={tmp_path / 'run'}", fails=True)
    assert f"{tmp_path / 'run'} is a file, and the run needs a folder there. Give another --workdir" in done.stderr
    done = inside("train.py", "--config=configs/phantom32_uvit_label.py", *TINY, f"--workdir={tmp_path / 'run' / 'below'}", fails=True)
    assert f"{tmp_path / 'run'} is a file, and the run needs a folder there" in done.stderr


def failing(error, path):
    def read(path):
        raise error

    try:
        read(path)
    except Exception as caught:
        return cli.describe_error(caught)


def test_full_disks_and_damaged_files_are_named_whoever_met_them(tmp_path):
    from safetensors import SafetensorError
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"x")
    full = failing(OSError(28, "No space left on device"), file)
    assert f"{file} could not be written: no space is left on the disk" in full and f"at {tmp_path}" in full and "MiB free" in full
    assert failing(SafetensorError("Error while serializing: No space left on device (os error 28)"), file).startswith(str(file))
    for error in (SafetensorError("Error while deserializing header: HeaderTooLarge"), zipfile.BadZipFile("File is not a zip file"),
                  EOFError(), json.JSONDecodeError("x", "y", 0)):
        text = failing(error, file)
        assert text.startswith(f"{file} cannot be read ({type(error).__name__}") and "damaged" in text
    text = failing(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), file)
    assert text.startswith(f"{file} is not text in UTF-8 (byte 1: invalid start byte). Save it as UTF-8")
    for error in (IndexError("list index out of range"), AssertionError("x"), AttributeError("no such")):
        assert "--verbosity=1 shows where" in failing(error, file)
    assert "[Errno 13]" in failing(PermissionError(13, "Permission denied", str(file)), file)


def test_every_kind_of_error_ends_a_script_in_one_line(tmp_path):
    for number, error in enumerate(("IndexError('tuple index out of range')", "AssertionError('x')", "AttributeError('y')",
                                    "ZeroDivisionError('z')", "StopIteration()", "NotImplementedError('n')")):
        script = tmp_path / f"fails{number}.py"
        script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom libs import cli\n\n\n"
                          f"def fail(config):\n    raise {error}\n\n\nif __name__ == '__main__':\n    cli.main(fail)\n")
        from tests.commands import call
        done = call(script, "--config=configs/phantom32_uvit_label.py", fails=True)
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_that_takes_ascii_alone(tmp_path, env):
    folder = tmp_path / "größe"
    done = subprocess.run([sys.executable, ROOT / "scripts" / "export_images.py", "--config=configs/phantom32_dit_label.py",
                           "--config.dataset.size=4", f"--output={folder}"], cwd=ROOT, capture_output=True,
                          env={**os.environ, **env, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-500:]
    assert b"4 images of phantoms" in done.stdout and (folder / "metadata.csv").is_file()


@pytest.mark.parametrize("script", ["adm_suite", "apply_filter", "compare_runs", "convert_features", "make_report", "rating_agreement",
                                    "simulate_raters", "test_filter"])
def test_scripts_without_a_config_end_in_one_line(inside, tmp_path, script):
    needed = {"adm_suite": ("reference", "samples"), "apply_filter": ("filter", "images"), "compare_runs": ("workdirs",),
              "convert_features": ("path", "output"), "make_report": ("workdir",), "rating_agreement": ("pool",),
              "simulate_raters": ("pool",), "test_filter": ("filter", "pool")}[script]
    values = [f"--{name}={tmp_path / 'nowhere' / 'at_all'}" for name in needed]
    done = inside(f"scripts/{script}.py", *values, fails=True)
    assert done.stderr.splitlines()[-1].startswith(("error: ", "  ")) and "Traceback" not in done.stderr
    done = inside(f"scripts/{script}.py", *values, "stray", fails=True)
    assert "unexpected argument 'stray'" in done.stderr
    done = inside(f"scripts/{script}.py", *values, "--wrong=1", fails=True)
    assert done.stderr.startswith("error: ") and "wrong" in done.stderr


def test_no_script_calls_absl_by_itself():
    for path in [*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert "app.run(" not in path.read_text(), path


def test_classes_called_all_or_with_commas_and_equals_signs():
    classes = ["all", "a, b", "x=y", 'the "other"', "n"]
    choose, count = pipeline.choose_labels, pipeline.count_labels
    assert choose("all", classes, 1, conditional=True) == [0, 1, 2, 3, 4]
    assert choose('"all"', classes, 2, conditional=True) == [0, 0]
    assert choose('a, b', classes, 1, conditional=True) == choose('"a, b"', classes, 1, conditional=True) == [1]
    assert count('"a, b"=2,x=y=1,n=1,all=1', classes) == [1, 1, 2, 4, 0]
    assert count('"the ""other"""=1, "all"=2', classes) == [3, 0, 0]
    with pytest.raises(ValueError, match="'a' is no class.*a name that holds a comma in double quotes"):
        count("a, b=2", classes)
    with pytest.raises(ValueError, match="'' is no class"):
        count("n=2,", classes)
    with pytest.raises(ValueError, match="'n' is there twice"):
        count('n=2,"n"=1', classes)
    assert Path(cli.__file__).is_file()
