"""Scripts called from elsewhere find what belongs to the repository; a full disk names the file."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from libs import cli, files
from libs.engine import checkpoint, places
from libs.evaluation import generation, references
from tests.conftest import ROOT


def test_caches_lie_below_the_repository_wherever_a_script_is_called(monkeypatch, tmp_path):
    assert places.REPOSITORY == ROOT
    for place in (references.CACHE, references.NETWORKS):
        assert place.is_absolute() and place.is_relative_to(ROOT / "assets")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.assets_folder() == tmp_path / "medical_image_synthesis", "an installation that cannot be written"


def test_paths_of_published_configs_mean_the_repository_s_assets(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = ConfigDict(dict(seed=0, codec=dict(path="assets/stable-diffusion/README.md"), features=dict(path="assets/datasets/none"),
                             metrics=dict(fid_stat="assets/prompts/of_{features}.npz"), dataset=dict(path="/assets/x")))
    config.lock()
    cli.find_assets(config)
    assert config.codec.path == str(ROOT / "assets/stable-diffusion/README.md") and Path(config.codec.path).is_file()
    assert config.features.path == "assets/datasets/none" and config.dataset.path == "/assets/x", "what is nowhere stays as it is"
    assert config.metrics.fid_stat == str(ROOT / "assets/prompts/of_{features}.npz")
    (tmp_path / "assets" / "stable-diffusion").mkdir(parents=True)
    (tmp_path / "assets" / "stable-diffusion" / "README.md").write_text("mine")
    config.codec.path = "assets/stable-diffusion/README.md"
    cli.find_assets(config)
    assert config.codec.path == "assets/stable-diffusion/README.md", "the current folder comes first"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file(monkeypatch, tmp_path):
    from PIL import Image
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"a.png cannot be written: No space left on device. .*MiB are free"):
        generation.save_png(tmp_path / "a.png", torch.zeros(1, 4, 4, dtype=torch.uint8))
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"shown.npz cannot be written: No space left on device. .*MiB are free"):
        generation.save_npz(tmp_path / "shown.npz", a=np.zeros(3))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"scores.json cannot be written: No space left on device. .*MiB are free"):
        checkpoint.write_text(tmp_path / "scores.json", "{}")
    assert not list(tmp_path.iterdir()), "nothing half is left"


def test_errors_that_name_a_file_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere") as error, files.disk_errors(tmp_path / "other"):
        open(tmp_path / "nowhere")
    assert "other" not in str(error.value)
    with pytest.raises(OSError, match="x.npy cannot be written: 5 requested and 0 "
                                      "written"), files.disk_errors("x.npy"):
        raise OSError("5 requested and 0 written")
