"""Paths and run folders on the command line: `~` in every path, blanks in place of `=`, mistyped and damaged runs."""

import importlib
import json
import shutil

import pytest
from ml_collections import ConfigDict

from libs import config_options
from tests.command_lines import config_of
from tests.conftest import ROOT

TINY = ("--config.train.n_steps=1", "--config.train.batch_size=2", "--config.train.eval_interval=0",
        "--config.train.preview_interval=0", "--config.train.validation_split=", "--config.dataset.size=8",
        "--config.nnet.embed_dim=32", "--config.nnet.depth=2",
        "--config.nnet.num_heads=2", "--config.lr_scheduler.warmup_steps=0", "--config.train.workers=0",
        "--config.sample.sample_steps=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with two trained runs, `lesions` and `skin/first`, and an empty folder to work in."""
    from tests.commands import call
    folder = tmp_path_factory.mktemp("home")
    (folder / "work").mkdir()
    call("train.py", f"--config={ROOT}/configs/phantom32_uvit_label.py", *TINY, "--workdir=~/lesions",
         cwd=folder / "work",
         env=(("HOME", str(folder)),))
    (folder / "skin").mkdir()
    shutil.copytree(folder / "lesions", folder / "skin" / "first")
    return folder


@pytest.fixture
def at_home(inside, home):
    """at_home('sample.py', ...): a script called in ~/work, where no folder of the name ~ may appear."""
    def call(name, *options, **how):
        done = inside(name, *options, cwd=home / "work", env=(("HOME", str(home)),), **how)
        assert not [path for path in (home / "work").rglob("*") if "~" in path.name]
        return done
    return call


def test_a_training_below_home(home):
    assert (home / "lesions" / "config.json").is_file() and not list((home / "work").iterdir())


def test_every_path_of_a_sampling(at_home, home):
    at_home("sample.py", "--workdir=~/lesions", "--nnet_path=~/lesions/ckpts/1.ckpt/nnet.safetensors",
            "--label=all", "--n_samples=1",
            "--config.sample.path=~/made")
    assert len(list((home / "made").glob("*_nevus.png"))) == 1
    at_home("sample.py", "--workdir", "~/lesions", "--label", "nevus", "--n_samples", "1",
            "--config.sample.path", "~/made_again")
    assert (home / "made_again" / "metadata.csv").is_file()


def test_every_path_of_an_evaluation(at_home, home):
    at_home("eval.py", "--workdir=~/lesions", "--config.metrics.features=('colour',)",
            "--config.metrics.n_samples=4",
            "--config.metrics.names=('fd',)", "--config.metrics.bootstrap=0", "--npz=~/images.npz",
            "--config.sample.path=~/evaluated")
    assert (home / "images.npz").is_file() and (home / "evaluated").is_dir()
    done = at_home("scripts/adm_suite.py", "--reference=~/nothing.npz", "--samples=~/images.npz",
                   "--weights=random", fails=True)
    assert str(home / "nothing.npz") in done.stderr


def test_scripts_without_a_config_too(at_home, home):
    at_home("scripts/make_report.py", "--workdir=~/lesions")
    assert (home / "lesions" / "report.html").is_file()
    at_home("scripts/export_images.py", f"--config={ROOT}/configs/phantom32_dit_label.py",
            "--config.dataset.size=4", "--output=~/exported")
    assert (home / "exported" / "metadata.csv").is_file()
    done = at_home("scripts/compare_runs.py", "--workdirs=~/skin/first,~/skin/first", "--out=~/compared",
                   fails=True)
    assert f"{home}/skin/first" in done.stderr and "~" not in done.stderr
    done = at_home("scripts/apply_filter.py", "--filter=~/filter", "--images=~/made", fails=True)
    assert f"no filter at {home}/filter" in done.stderr


@pytest.mark.parametrize("typed, expected", [
    ("~", "{h}"), ("~/a", "{h}/a"), ("~/a,~/b", "{h}/a,{h}/b"), ("~/a, ~/b", "{h}/a, {h}/b"),
    ("inception@~/w.pth", "inception@{h}/w.pth"),
    ("classifier:~/net", "classifier:{h}/net"), ("a~/b", "a~/b"), ("x~", "x~"), ("~backup", "~backup"),
    ("5 ~ 6", "5 ~ 6"),
    ("/a/~/b", "/a/~/b"), ("", "")])
def test_where_a_home_folder_stands(monkeypatch, typed, expected):
    monkeypatch.setenv("HOME", "/home/ana")
    assert config_options.expand_home(typed) == expected.format(h="/home/ana")


def path_fields():
    """(config, dotted path) of every text of every config whose name says that it is a path."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("common",
                                                                                              "from_run",
                                                                                              "__init__"))
    for name in names:
        config = importlib.import_module(f"configs.{name}").get_config()
        for path, value in texts(config):
            key = path.rsplit(".", 1)[-1]
            if "path" in key or key in ("fid_stat", "init", "ldm", "npz", "table", "masks", "real", "pool"):
                if not (key == "masks" and path != "sample.masks") and not key.endswith("_column"):
                    yield name, path


def texts(section, path=""):
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from texts(value, f"{path}{key}.")
        elif isinstance(value, str):
            yield f"{path}{key}", value


def test_every_path_of_every_config(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    fields = list(path_fields())
    assert len(fields) > 150
    for name, path in fields:
        config = importlib.import_module(f"configs.{name}").get_config()
        section, key = config, path
        *above, key = path.split(".")
        for each in above:
            section = section[each]
        section[key] = "~/x"
        config_options.expand_homes(config)
        assert section[key] == "/home/ana/x", (name, path)
    config = ConfigDict({"metrics": {"features": ("timm:resnet50@~/w.safetensors", "~/net", "colour")}})
    config_options.expand_homes(config)
    assert config.metrics.features == ("timm:resnet50@/home/ana/w.safetensors", "/home/ana/net", "colour")




def test_a_config_below_home_that_is_typed_with_overrides(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ROOT / "configs" / "phantom32_uvit_label.py", tmp_path / "mine.py")
    config = config_of("~/mine.py", "--config.train.init=~/start.pth", "--config.sample.path=~/made",
                       "--config.filter.path=~/filter")
    assert (config.train.init, config.sample.path, config.filter.path) == tuple(
        f"{tmp_path}/{name}" for name in ("start.pth", "made", "filter"))


@pytest.mark.parametrize("script, more", [
    ("sample.py", ()), ("sample.py", ("--config.sample.guidance=2", "--label=all")),
    ("eval.py", ("--config.metrics.n_samples=4",)),
    ("eval_dit.py", ()), ("sample_dual_bridge.py", ()), ("scripts/export_pipeline.py", ()),
    ("scripts/make_report.py", ())])
def test_a_mistyped_run_has_its_neighbour_named(at_home, home, script, more):
    for blank in (False, True):
        given = ("--workdir", "~/lesion") if blank else ("--workdir=~/lesion",)
        done = at_home(script, *given, *more, fails=True)
        assert done.stderr == f'error: --workdir={home}/lesion does not exist. Did you mean "{home}/lesions"?\n'


def test_runs_that_a_comparison_does_not_have(at_home, home):
    done = at_home("scripts/compare_runs.py", "--workdirs=~/lesions,~/skin/frist", fails=True)
    assert done.stderr == f'error: --workdirs={home}/skin/frist does not exist. Did you mean "{home}/skin/first"?\n'


@pytest.mark.parametrize("given, expected", [
    ("lesions/ckpts/1.ckpt", "holds no config.json, so that it is no run. Did you mean \"{h}/lesions\"?"),
    ("lesions/config.json", "is no folder. Did you mean \"{h}/lesions\"?"),
    ("skin", "holds no config.json, so that it is no run. Did you mean \"{h}/skin/first\"?"),
    ("skni/first", "does not exist. Did you mean \"{h}/skin/first\"?")])
@pytest.mark.parametrize("script", ["sample.py", "scripts/make_report.py"])
def test_folders_near_a_run(at_home, home, script, given, expected):
    done = at_home(script, f"--workdir=~/{given}", fails=True)
    assert done.stderr == f"error: --workdir={home}/{given} {expected.format(h=home)}\n"
    assert not (home / given / "report.html").exists(), "no page of what is no run"


def test_a_page_of_a_run_that_lost_its_config(at_home, home, tmp_path):
    shutil.copytree(home / "lesions", tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    at_home("scripts/make_report.py", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize("spoil, words", [
    (lambda content: content[:len(content) // 2], "is damaged (Expecting"),
    (lambda content: "", "is damaged (Expecting value"),
    (lambda content: "[1]", "is damaged (it holds no sections)"),
    (lambda content: json.dumps({**json.loads(content), "nnet": "uvit"}),
     "is damaged (nnet is 'uvit' and no section)")])
def test_a_damaged_config_names_its_file_and_the_way_out(at_home, home, tmp_path, spoil, words):
    shutil.copytree(home / "lesions", tmp_path / "run")
    saved = tmp_path / "run" / "config.json"
    saved.write_text(spoil(saved.read_text()))
    for options in ((), ("--config.sample.guidance=1",)):
        done = at_home("sample.py", f"--workdir={tmp_path / 'run'}", *options, fails=True)
        assert done.stderr.startswith(f"error: {saved} {words}") and done.stderr.count("\n") == 1
    done = at_home("scripts/compare_runs.py", f"--workdirs={tmp_path / 'run'},~/lesions", fails=True)
    assert done.stderr.startswith(f"error: {saved} {words}")
    # what the message advises
    at_home("sample.py", f"--workdir={tmp_path / 'run'}", f"--config={ROOT}/configs/phantom32_uvit_label.py",
            *TINY, "--n_samples=1",
            f"--config.sample.path={tmp_path / 'made'}")
    assert len(list((tmp_path / "made").glob("0*.png"))) == 1


@pytest.mark.parametrize("section, script", [("nnet", "sample.py"), ("metrics", "eval.py")])
def test_a_run_whose_config_lacks_a_section(at_home, home, tmp_path, section, script):
    shutil.copytree(home / "lesions", tmp_path / "run")
    saved = tmp_path / "run" / "config.json"
    content = json.loads(saved.read_text())
    del content[section]
    saved.write_text(json.dumps(content))
    done = at_home(script, f"--workdir={tmp_path / 'run'}", fails=True)
    assert f"error: {saved} has no config.{section}, which this script reads. Give the config" in done.stderr


def test_a_flag_without_its_value(at_home):
    assert at_home("sample.py", "--workdir",
                   fails=True).stderr == "error: --workdir has no value: write --workdir=VALUE\n"
    assert "--workdir has no value" in at_home("sample.py", "--workdir", "--label=all", fails=True).stderr
    assert "--config has no value" in at_home("train.py", "--config", fails=True).stderr


def test_scripts_name_the_option_that_is_missing(at_home):
    assert at_home("scripts/make_report.py",
                   fails=True).stderr == "error: --workdir is missing: folder of the run\n"
    assert "--pool is missing: folder of the pool" in at_home("scripts/rating_agreement.py",
                                                              fails=True).stderr
