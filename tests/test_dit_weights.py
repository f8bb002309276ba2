"""DiT with weights of others: images without any real ones, and trainings that begin with weights of other classes or sizes."""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_dit
import train_dit
from configs.common import adamw, d, metrics
from libs import backbones, engine, evaluation, metrics as scores_of, pipeline, report
from libs.evaluation.generation import Sink

SMALL = dict(patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, mlp_ratio=2.0, class_dropout_prob=0.1)


def config_of(*, classes=4, size=8, **sample):
    """A DiT of a few thousand weights on pixels; no real image is anywhere."""
    config = d(seed=0)
    config.train = d(mode="cond", workers=0, p_uncond=0.1, mixed_precision="no", validation_split="")
    config.optimizer = adamw(1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    config.nnet = d(name="dit", **SMALL, input_size=size, num_classes=classes)
    config.schedule, config.codec = d(name="linear", steps=1000), d(name="pixels")
    config.denoiser, config.features = d(predicts="eps", learned_var=True), d(path="", dtype="float16")
    config.dataset = d(name="folder", path="", resolution=size)
    config.sample = d(**dict(dict(algorithm="dpmpp_2m", sample_steps=2, n_samples=11, mini_batch_size=4, guidance=1.5,
                                  labels="data", path="", npz=""), **sample))
    config.metrics = metrics(features=("classifier",))
    return config


def weights_of(seed=0, **sizes):
    """Random weights under the published names."""
    torch.manual_seed(seed)
    net = backbones.get("dit", **(SMALL | dict(input_size=8, num_classes=4) | sizes))
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(weights_of(), "DiT-S-2-8x8.pt")
    return tmp_path / "DiT-S-2-8x8.pt"


def test_images_for_the_adm_suite_without_any_real_one(file, tmp_path, capsys, caplog):
    eval_dit.evaluate(config_of(), str(tmp_path / "run"), str(file), 1, "", "deep/samples.npz")
    said = capsys.readouterr().out
    assert "11 images, dpmpp_2m, 2 steps, guidance 1.5\nwarning: not scored by features: no images at" in said
    assert "11 images in deep/samples.npz" in said and "images are made for deep/samples.npz and not scored" in caplog.text
    with np.load("deep/samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"] and archive["arr_0"].dtype == np.uint8 and archive["arr_0"].shape == (11, 8, 8, 3)
        images = archive["arr_0"]
    assert not list((tmp_path / "deep").glob(".staging*")) and len(np.unique(images.reshape(11, -1), axis=0)) == 11
    result = json.loads((tmp_path / "run/eval/DiT-S-2-8x8_11/scores.json").read_text())
    assert result["n"] == 11 and result["scores"] == {}
    with np.load(tmp_path / "run/eval/DiT-S-2-8x8_11/shown.npz") as shown:
        assert shown["arr_0"].shape == (11, 8, 8, 3) and (images[:, None] == shown["arr_0"]).all((2, 3, 4)).any(1).all()
    assert "not scored by features" in report.write(tmp_path / "run").read_text()
    # rows are images in order, whatever the batches, and config.sample.npz means the same
    eval_dit.evaluate(config_of(mini_batch_size=11, npz="again.npz"), str(tmp_path / "run"), str(file), 1, "other", "")
    with np.load("again.npz") as again:
        assert np.abs(again["arr_0"].astype(int) - images).max() <= 1
    config = config_of()
    config.dataset.path = "nowhere"
    with pytest.raises(FileNotFoundError, match="no images at config.dataset.path.*To keep images without scores.*--npz=FILE"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "")


def test_images_are_kept_where_no_feature_network_can_be_had(file, tmp_path, capsys):
    config = config_of(n_samples=2)
    scores_of.save_stats("stats.npz", scores_of.Gaussian(torch.zeros(64), torch.eye(64), 5, "classifier-data"))
    config.metrics.fid_stat, config.dataset.path = "stats.npz", "nowhere"
    with pytest.raises(FileNotFoundError, match="no feature network of config.metrics.features can be had"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "")
    eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "two.npz")
    assert "not scored by features: no feature network" in capsys.readouterr().out
    with np.load("two.npz") as archive:
        assert archive["arr_0"].shape == (2, 8, 8, 3)


def test_another_guidance_than_the_run_s_has_a_folder_of_its_own(file, tmp_path):
    (tmp_path / "run").mkdir()
    own = config_of(n_samples=1, guided_channels="all", guidance_interval=(0.0, 1.0))
    (tmp_path / "run/config.json").write_text(own.to_json_best_effort())
    for change in ({}, {"guidance": 4.0}, {"guidance_interval": (0.1, 0.75)}, {"guidance_interval": (0.0, 1.0), "guidance": 1.0}):
        config = own.copy_and_resolve_references()
        config.sample.update(change)
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "x.npz")
    assert {path.name for path in (tmp_path / "run/eval").iterdir()} == {
        f"DiT-S-2-8x8_1{words}" for words in ("", "_guidance4", "_from0.1to0.75", "_guidance1")}


def test_an_archive_that_cannot_be_written_is_said_before_the_first_image(file, tmp_path, monkeypatch):
    config = config_of()
    with pytest.raises(ValueError, match="is a folder: --npz .* such as .*/samples.npz"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", str(tmp_path))
    config = config_of(n_samples=10 ** 15)
    monkeypatch.setattr(evaluation, "asked", lambda *_, **__: {"label": torch.zeros(1)})
    with pytest.raises(OSError, match=r"samples.npz: 1000000000000000 images of 192 bytes.*need 384000000.* GB, and .* are free"):
        eval_dit.evaluate(config, str(tmp_path / "run"), str(file), 1, "", "samples.npz")
    assert not (tmp_path / "samples.npz").exists() and not list(tmp_path.glob(".staging*"))


def test_an_archive_of_a_failed_evaluation_leaves_nothing(tmp_path):
    run = engine.Run(tmp_path / "run")
    with pytest.raises(RuntimeError, match="half-way"):
        with Sink(run, npz=tmp_path / "a.npz", shape=(2, 3, 4, 4)) as sink:
            sink.add([1], torch.ones(1, 3, 4, 4, dtype=torch.uint8))
            raise RuntimeError("half-way")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run.finish()


@pytest.mark.parametrize("held", ["plain", "training", "without an average"])
def test_published_files_and_training_checkpoints(file, tmp_path, caplog, held):
    """DiT-XL-2-256x256.pt is a state_dict; fast-DiT's 0050000.pt holds model, ema, opt and args, an argparse.Namespace."""
    averaged, raw = weights_of(0), weights_of(1)
    if held != "plain":
        whole = {"model": raw, "ema": averaged, "args": argparse.Namespace(model="DiT-S/2", num_classes=4, image_size=64),
                 "opt": torch.optim.AdamW([torch.nn.Parameter(raw["pos_embed"])]).state_dict()}
        torch.save({key: value for key, value in whole.items() if held == "training" or key != "ema"}, file)
    with caplog.at_level(logging.INFO):
        weights, step, source = engine.load_weights(file)
    wanted = raw if held == "without an average" else averaged
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert step is None and source == file and engine.class_names(file) is None
    assert {"plain": "", "training": "the moving average, ema, is used",
            "without an average": "model, without an average, is used"}[held] in caplog.text
    config = config_of()
    run = engine.start(config, str(tmp_path / "run"), claim=False)
    trained = evaluation.open_trained(run, config, str(tmp_path / "run"), str(file), with_data=False)
    run.finish()
    assert trained.classes == ["0", "1", "2", "3"] and trained.sampler.null["label"] == 4
    assert torch.equal(trained.sampler.net.blocks[0].mlp.fc1.weight, wanted["blocks.0.mlp.fc1.weight"])


def test_nothing_else_is_loaded_from_a_pickle(tmp_path):
    torch.save({"model": weights_of(), "args": Path("results")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="bad.pt cannot be read safely as weights: it holds pathlib.PosixPath, which could run code"):
        engine.load_weights(tmp_path / "bad.pt")
    torch.save({"model": {"deep": weights_of()}, "ema": {}, "opt": {}}, tmp_path / "deep.pt")
    with pytest.raises(ValueError, match="deep.pt does not hold a state_dict.*nor one under ema or model.*model.*ema.*opt"):
        engine.load_weights(tmp_path / "deep.pt")


def net_of(**sizes):
    torch.manual_seed(5)
    return backbones.get("dit", **(SMALL | dict(input_size=8, num_classes=4) | sizes))


@pytest.mark.parametrize("sizes, without", [(dict(num_classes=7), ("y_embedder",)), (dict(input_size=16), ("pos_embed",)),
                                            (dict(num_classes=2, input_size=4), ("y_embedder", "pos_embed"))])
def test_a_training_begins_with_weights_of_other_classes_or_another_size(sizes, without):
    """One option; without it, and with half of it, the error says what to add."""
    weights, net = weights_of(), net_of(**sizes)
    fresh, fitting = {name: value.clone() for name, value in net.state_dict().items()}, net_of()
    said = r"config.train.init are of another task: .*in place of.*--config.train.init_without=\"\(" + ", ".join(
        f"'{name}'" for name in without) + (r",\)\"" if len(without) == 1 else r"\)\"")
    for half in range(len(without)):
        with pytest.raises(ValueError, match=said):
            pipeline.start_from(net, weights, without=without[:half])
    pipeline.start_from(net, weights, without=without)
    own, table = net.state_dict(), "y_embedder.embedding_table.weight"
    for name in own.keys() - {table, "pos_embed"}:
        assert torch.equal(own[name], weights[name]), name
    if "y_embedder" in without:
        assert torch.equal(own[table][-1], weights[table][-1]), "what they know of no class"
        assert torch.equal(own[table][:-1], fresh[table][:-1])
    else:
        assert torch.equal(own[table], weights[table])
    assert torch.equal(own["pos_embed"], fresh["pos_embed"])
    pipeline.start_from(fitting, weights)  # and weights that fit need no option
    assert all(torch.equal(value, weights[name]) for name, value in fitting.state_dict().items())
    del weights["pos_embed"]  # as in checkpoints that hold only what is trained
    pipeline.start_from(net_of(), weights)


def test_weights_of_a_network_without_classes():
    """Its one row is that of no class."""
    weights, net = weights_of(num_classes=-1), net_of()
    pipeline.start_from(net, weights, without=("y_embedder",))
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(net.state_dict()[table][-1:], weights[table])


def test_weights_that_cannot_be_adapted():
    for sizes, said in ((dict(patch_size=4), "the checkpoint has patch_size=2, the network 4: set --config.nnet.patch_size=2"),
                        (dict(hidden_size=32, num_classes=7), "the checkpoint has hidden_size=16, the network 32"),
                        (dict(depth=2), "the checkpoint has depth=1, the network 2"),
                        (dict(learn_sigma=False), "learn_sigma=True, the network False: set --config.denoiser.learned_var=True")):
        for without in ((), ("y_embedder", "pos_embed")):
            net = net_of(**sizes)
            before = {name: value.clone() for name, value in net.state_dict().items()}
            with pytest.raises(ValueError, match=said) as raised:
                pipeline.start_from(net, weights_of(), without=without)
            assert "init_without" not in str(raised.value)
            assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "left as it was"
    with pytest.raises(ValueError, match=r"init_without=\('y_embeder',\): no weight's name begins with 'y_embeder'"):
        pipeline.start_from(net_of(), weights_of(), without=("y_embeder",))
    with torch.device("meta"):
        published = backbones.get("dit", model="DiT-B/4").state_dict()
        with pytest.raises(ValueError, match="has model='DiT-B/4', the network 'DiT-B/2': set --config.nnet.model=DiT-B/4"):
            backbones.load(backbones.get("dit", model="DiT-B/2"), published)


@pytest.mark.parametrize("sizes, said", [
    (dict(classes=3), r"num_classes=4, the network 3: set --config.nnet.num_classes=4\n .*init_without=\"\('y_embedder',\)\""),
    (dict(size=16), r"input_size=8, the network 16: set --config.nnet.input_size=8\n .*init_without=\"\('pos_embed',\)\"")])
def test_a_config_of_other_classes_or_size_says_what_the_weights_are_for(file, tmp_path, sizes, said):
    with pytest.raises(ValueError, match=said):
        eval_dit.evaluate(config_of(**sizes), str(tmp_path / "run"), str(file), 1, "", "x.npz")


def test_a_training_from_other_weights_resumes_and_is_sampled(file, tmp_path, caplog):
    """The whole way: weights of four classes at 8 pixels, phantoms of another number of classes at 16."""
    config = config_of(classes=0, size=16)
    config.train.update(dict(
        n_steps=2, batch_size=4, accumulation=1, compile=False, attention="auto", tf32=False, balanced=False, weighting="eps",
        rescale_learned_sigmas=False, use_kl=False, time_sampler="uniform", ema_rate=0.5, ema_warmup=False, grad_clip=0.0,
        init=str(file),
        init_without=("y_embedder", "pos_embed"), keep_checkpoints=2, log_interval=1, preview_interval=0, eval_interval=0,
        save_interval=1, validation_interval=0, validation_size=4, best_metric=""))
    config.optimizer.lr = 1e-12
    config.lr_scheduler = d(name="customized", warmup_steps=0)
    config.dataset = d(name="phantoms", resolution=16, size=8, seed=0, split="train")
    train_dit.train(config, str(tmp_path / "run"))
    weights, step, _ = engine.load_weights(tmp_path / "run")
    before = torch.load(file, weights_only=True)
    assert step == 2 and weights["pos_embed"].shape == (1, 64, 16)  # as in published checkpoints
    assert torch.allclose(weights["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"], atol=1e-6)
    table = "y_embedder.embedding_table.weight"
    assert torch.allclose(weights[table][-1], before[table][-1], atol=1e-6)

    file.unlink()  # from here on the run stands alone
    config.train.n_steps = 3
    train_dit.train(config, str(tmp_path / "run"))
    run = engine.start(config, str(tmp_path / "run"), claim=False)
    trained = evaluation.open_trained(run, config, str(tmp_path / "run"), "", with_data=False)
    classes = len(trained.classes)
    images = trained.sampler({"label": torch.tensor([0, classes - 1])}, seed=0, indices=[0, 1])
    run.finish()
    assert trained.step == 3 and images.shape == (2, 3, 16, 16) and len(weights[table]) == classes + 1
    # a run of another size is no resume, and its own checkpoint tells its size
    config.nnet.input_size, config.train.n_steps, config.dataset.resolution = 8, 4, 8
    with pytest.raises(ValueError, match="`--config.dataset.resolution=8`, which was 16. .*another --workdir"):
        train_dit.train(config, str(tmp_path / "run"))
    config.train.init, config.train.init_without = str(tmp_path / "run"), ()
    with pytest.raises(ValueError, match=r"input_size=16 in place of 8.*init_without=\"\('pos_embed',\)\""):
        train_dit.train(config, str(tmp_path / "next"))
