"""Every option of every data set by the command line, with every config (issue 15: F17, gap 2)."""

import inspect
import json
import re

import pytest

from libs import data
from tests.commands import call
from tests.test_configs import ALL, CONFIGS

PROBE = """import json
from libs import cli

def probe(config, workdir):
    print("CONFIG", json.dumps({"config": config.to_dict(), "workdir": workdir}, default=str))

if __name__ == "__main__":
    cli.main(probe)
"""
WITH_DATA = [name for name in ALL if CONFIGS[name].get("dataset", {}).get("name")]
OWN = [name for name in WITH_DATA if name.startswith("folder")]
TYPED = {bool: "True", str: "text", int: "3", float: "0.5", tuple: "('x','y')"}
SPECIAL = {"window": "(0,4095)", "cast": "(1.0,0.9,0.7)", "mask_values": "(0,1,2)"}


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """probe(config, *options) -> the config that a script gets; fails=True: what the command line answers."""
    script = tmp_path_factory.mktemp("probe") / "probe.py"
    script.write_text(PROBE)

    def settle(config, *options, fails=False, whole=False):
        config = f"configs/{config}.py" if config in ALL else config
        done = call(script, f"--config={config}", *options, fails=fails)
        if fails:
            return done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("CONFIG"))
        content = json.loads(line.split(" ", 1)[1])
        return content if whole else content["config"]

    return settle


def typed(options, given):
    """{option: text} for the options of a data set that can be typed, those in `given` left out."""
    return {key: SPECIAL.get(key, TYPED.get(type(default), "")) for key, default in options.items()
            if key not in given and default is not inspect.Parameter.empty and type(default) in TYPED}


@pytest.mark.parametrize("kind", data.NAMES)
@pytest.mark.parametrize("config", OWN)
def test_every_option_of_every_data_set_can_be_typed(probe, config, kind):
    options = data.list_options(kind)
    given = {"name": kind}
    if "resolution" in options:
        given["resolution"] = "64" if "64" in config else "128" if "128" in config else "256"
    if "path" in options:
        given["path"] = "/some/images"
    more = typed(options, {*given, "channels"})
    result = probe(config,
                   *(f"--config.dataset.{key}={value}" for key, value in (given | more).items()))["dataset"]
    for key, value in more.items():
        default, have = options[key], result[key]
        assert isinstance(default, tuple) or have == type(default)(have)
        shown = re.sub(r"\s", "", str(tuple(have) if isinstance(have, list) else have))
        assert shown in (value, f"{value}.0"), (key, value, have)
    # a file may list options of the other forms of own images
    listed = CONFIGS[config].dataset if kind == CONFIGS[config].dataset.name else ()
    assert set(result) <= {"name", *options, *listed}, "an option that the data set does not take is left out"


@pytest.mark.parametrize("config", WITH_DATA)
def test_options_that_the_file_lacks_are_taken_and_others_stay(probe, config):
    kind = CONFIGS[config].dataset.name
    lacking = {key: value for key,
               value in typed(data.list_options(kind), set(CONFIGS[config].dataset)).items()
               if key not in ("channels", "resolution")}
    before = probe(config)["dataset"]
    after = probe(config, *(f"--config.dataset.{key}={value}" for key, value in lacking.items()))["dataset"]
    assert {key: value for key, value in after.items() if key not in lacking} == before
    assert set(after) == set(before) | set(lacking)


def leaves(section, path=""):
    for key, value in section.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize("config", ALL)
def test_a_config_typed_out_whole_is_itself(probe, config):
    """Each option of each file, typed with the value that it has, changes nothing and is never refused."""
    plain = probe(config)
    options = [f"--config.{path}={value!r}" if isinstance(value, tuple) else f"--config.{path}={value}"
               for path, value in leaves(plain_tuples(plain)) if value != ()]
    assert probe(config, *options) == plain


def plain_tuples(value):
    if isinstance(value, dict):
        return {key: plain_tuples(part) for key, part in value.items()}
    return tuple(plain_tuples(part) for part in value) if isinstance(value, list) else value


@pytest.mark.parametrize("options, words", [
    (("--config.dataset.upscael=True",),
     ("config.dataset has no option 'upscael'", 'Did you mean "upscale"?')),
    (("--config.dataset.image_prefix=a",),
     ("has no option 'image_prefix'", "--config.dataset.name=image_mask")),
    (("--config.dataset.name=isic2018", "--config.dataset.drop_classes=('a',)"),
     ("config.dataset.drop_classes=('a',): the data set 'isic2018' has no option 'drop_classes'",)),
    (("--config.dataset.name=isic2018", "--config.dataset.holdout=0.2", "--config.dataset.min_per_class=0"),
     ("2 settings are not right", "holdout=0.2", "'min_per_class'")),
    (("--config.dataset.name=folderr",), ("did you mean 'folder'",)),
    (("--config.dataset.upscale=maybe",), ("--config.dataset.upscale=maybe",)),
    (("--config.dataset.min_per_class=few",), ("--config.dataset.min_per_class=few", "whole number")),
])
def test_what_no_data_set_takes_is_named(probe, options, words):
    answer = probe("folder64_uvit_label", *options, fails=True)
    assert all(part in answer for part in words), answer
    assert "img_size" not in answer and "Traceback" not in answer


@pytest.mark.parametrize("config", OWN)
@pytest.mark.parametrize("kind", ["isic2018", "chestxray14"])
def test_published_medical_sets_with_configs_of_own_images(probe, config, kind):
    dataset = probe(config, f"--config.dataset.name={kind}", "--config.dataset.path=/data")["dataset"]
    assert dataset["name"] == kind and "drop_classes" not in dataset and "label_column" not in dataset


def test_between_forms_of_own_images_defaults_are_those_of_the_chosen_one(probe):
    """path_text keeps files that several rows name, and its texts stand in the column Text."""
    dataset = probe("folder64_vap", "--config.dataset.name=path_text",
                    "--config.dataset.text_column=report")["dataset"]
    assert dataset["doubled_files"] == "keep" and dataset["text_column"] == "report"


def test_a_switch_of_data_sets_needs_what_the_new_one_needs(probe):
    """CIFAR-10 has neither resolution nor folder of images; a folder has both."""
    options = ("--config.dataset.name=folder", "--config.dataset.path=/some", "--config.nnet.img_size=32")
    dataset = probe("cifar10_uvit_small", *options, "--config.dataset.resolution=32")["dataset"]
    assert (dataset["resolution"], dataset["path"]) == (32, "/some")
    assert "labelled" not in dataset
    assert "config.dataset.resolution is 0" in probe("cifar10_uvit_small", *options, fails=True)


def test_folders_of_runs_are_named_by_what_was_typed(probe):
    content = probe("folder64_uvit_label", "--config.dataset.path=/a", "--config.dataset.crop=pad",
                    whole=True)
    assert content["workdir"] == "workdir/folder64_uvit_label/crop=pad-path=_a"


def test_a_config_of_a_run_takes_them_as_well(probe, tmp_path):
    """An old run's config.json lists few options; an evaluation of it may set any."""
    config = probe("folder64_uvit_label", "--config.dataset.path=/a")
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = probe(f"configs/from_run.py:{tmp_path}/config.json", "--config.dataset.crop=pad",
                  "--config.dataset.follow_links=True")
    assert again["dataset"] == config["dataset"] | {"crop": "pad", "follow_links": True}


def test_test_images_of_a_study_take_options_of_the_real_images(probe):
    config = probe("folder64_downstream", "--config.dataset.path=/a", "--config.test.path=/b",
                   "--config.test.crop=pad")
    assert config["test"] == {"path": "/b", "crop": "pad"} and "crop" not in config["dataset"]


