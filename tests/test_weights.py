"""The column `weight` of a table: what it may hold, where it comes from, and that every training multiplies losses by it."""

import importlib
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from configs import from_run
from configs.common import d
from libs import data, diffusion, engine, evaluation, extraction, pipeline
from libs.codecs import training
from libs.data import store
from tests import tiny_pixart, tiny_sd

WEIGHTS = [2.0, 0.0, 1.0, 0.5, 1.5, 0.25, 3.0, 0.75]
TEXTS = ["red cell", "a large green lesion"]


def written(root, weight=WEIGHTS, *, column="weight", split=None):
    """A folder of 32x32 images with masks, labels, texts and, where `weight` has values, a column of them."""
    root.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), ["file_name,mask_file_name,label,text,split" + (f",{column}" if weight else "")]
    for i in range(len(weight or WEIGHTS)):
        if not (root / f"{i}.png").exists():
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{i}.png")
            Image.fromarray(rng.integers(0, 2, (32, 32), dtype=np.uint8) * 255).save(root / f"m{i}.png")
        lines.append(f"{i}.png,m{i}.png,{'ab'[i % 2]},{TEXTS[i % 2]},{split[i] if split else 'train'}"
                     + (f",{weight[i]}" if weight else ""))
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def folder(path, **options):
    return data.get(**{"name": "folder", "path": str(path), "resolution": 8, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return written(tmp_path_factory.mktemp("weights") / "data")


# The column

def test_items_batches_and_parts_carry_their_weight(root):
    dataset = folder(root)
    assert dataset.weights.tolist() == WEIGHTS and dataset.weights.dtype == torch.float32
    assert dataset[3]["weight"].shape == () and dataset.rows[3]["weight"] == "0.5"
    part = data.Subset(dataset, [6, 1])
    assert part.weights.tolist() == [3.0, 0.0] == part.batch([0, 1])["weight"].tolist()
    batch = next(data.Stream(dataset, 4, seed=1)(0))
    assert batch["weight"].tolist() == [WEIGHTS[i] for i in batch["index"]]
    named = data.WithTokens(dataset, dataset.captions, lambda texts: torch.zeros(len(texts), 2))
    assert named.batch([6])["weight"].tolist() == [3.0] == named.weights[[6]].tolist()


def test_a_table_without_the_column_and_one_that_is_not_to_be_used(root, tmp_path):
    plain = folder(written(tmp_path, weight=None))
    assert plain.weights is None and "weight" not in plain[0]
    unused = folder(root, weight_column="")
    assert unused.weights is None and "weight" not in unused[0] and unused.rows[0]["weight"] == "2.0"
    assert unused.fingerprint == folder(root).fingerprint, "weights are no part of what images show"


@pytest.mark.parametrize("cell", ["", " ", "-0.1", "nan", "inf", "heavy", "10.5", "1_0", "71.5"])
def test_what_is_no_weight_is_named_with_its_line(tmp_path, cell):
    path = written(tmp_path, [1.0, cell, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"metadata.csv:3: weight is '.*0 to 10.*weight_column=''") as caught:
        folder(path)
    assert repr(cell) in str(caught.value)
    assert folder(path, weight_column="").weights is None


def test_a_patients_weight_is_told_in_one_sentence(tmp_path):
    with pytest.raises(ValueError) as caught:
        folder(written(tmp_path, [60 + i for i in range(30)]))
    said = str(caught.value)
    assert "metadata.csv:2: weight is '60'" in said and "27 more rows" in said and said.count("weight_column=''") == 1


def test_nothing_but_zeros_and_other_names_of_the_column(tmp_path):
    zeros = written(tmp_path / "0", [0.0, 0.0, 1.0, 1.0], split=["train", "train", "val", "val"])
    with pytest.raises(ValueError, match="every weight is 0 in split 'train'"):
        folder(zeros, split="train")
    assert folder(zeros, split="val").weights.tolist() == [1.0, 1.0]
    other = written(tmp_path / "other", [1.0, 3.0], column="score")
    assert folder(other).weights is None and folder(other, weight_column="score").weights.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="no column 'reward'"):
        folder(other, weight_column="reward")
    with pytest.raises(ValueError, match="did you mean 'Weight'.*weight_column=''"):
        folder(written(tmp_path / "case", [1.0, 3.0], column="Weight"))
    classes = tmp_path / "classes" / "a"
    classes.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(classes / "1.png")
    assert folder(classes.parent).weights is None
    with pytest.raises(ValueError, match="weight_column='score' needs a metadata table"):
        folder(classes.parent, weight_column="score")


def test_splits_in_folders_of_which_one_has_weights(tmp_path):
    written(tmp_path / "train", [2.0, 0.5])
    written(tmp_path / "val", weight=None)
    for name in ("train", "val"):  # their folders are their splits
        table = tmp_path / name / "metadata.csv"
        table.write_text(table.read_text().replace(",split", ",kind"))
    assert folder(tmp_path, split="train").weights.tolist() == [2.0, 0.5] and folder(tmp_path, split="val").weights is None
    assert folder(tmp_path).weights.tolist() == [2.0, 0.5] + [1.0] * 8, "real images without the column count once"


def test_jsonl_and_tables_of_paths(tmp_path):
    written(tmp_path, weight=None)
    (tmp_path / "rows.jsonl").write_text('{"file_name": "0.png", "weight": 1.5}\n{"file_name": "1.png", "weight": 0}\n')
    assert folder(tmp_path / "rows.jsonl", unlisted_files="ignore").weights.tolist() == [1.5, 0.0]
    (tmp_path / "rows.jsonl").write_text('{"file_name": "0.png", "weight": NaN}\n{"file_name": "1.png"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:1: weight is 'NaN', rows.jsonl:2: weight is ''"):
        folder(tmp_path / "rows.jsonl", unlisted_files="ignore")
    (tmp_path / "rows.csv").write_text("path, Text, Weight\n0.png, red cell, 0.5\n1.png, green cell, 2\n")
    assert data.get("path_text", path=str(tmp_path / "rows.csv"), resolution=8).weights.tolist() == [0.5, 2.0]


def test_what_weights_are_used_is_said_once_and_strange_means_are_warned_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = written(tmp_path / "one")
    folder(path), folder(path)
    said = [each for each in caplog.records if "weights 0 to 3, mean 1.125" in each.message]
    assert len(said) == 1 and said[0].levelno == logging.INFO and "8 images" in said[0].message
    folder(written(tmp_path / "newborns", [3.1, 3.4, 2.9]))
    assert [each.levelno for each in caplog.records if "newborns" in each.message] == [logging.WARNING]


# Features

IDENTITY = {"codec": {"name": "none"}, "encoder": {}}


def stored(path, dataset):
    store.write(path / "train", dataset, encode_images=lambda x: (x, None), identity=IDENTITY, progress=False,
                about={"dataset": {"resolution": 8}})
    return {"path": str(path)}


def test_features_take_the_weights_of_the_table_as_it_is_now(tmp_path):
    path = written(tmp_path / "data")
    features = stored(tmp_path / "features", folder(path))
    written(path, WEIGHTS[::-1])
    options = dict(name="folder", path=str(path), resolution=8, split="train")
    opened = data.open_all(options, features, IDENTITY)
    assert opened.examples.weights.tolist() == WEIGHTS[::-1] == opened.examples.batch(range(8))["weight"].tolist()
    assert pickle.loads(pickle.dumps(opened.examples)).weights.tolist() == WEIGHTS[::-1], "and so do data workers"
    assert data.open_all(options | {"weight_column": ""}, features, IDENTITY).examples.weights is None
    written(path, weight=None)
    assert "weight" not in data.open_all(options, features, IDENTITY).examples.batch([0])


def test_features_keep_weights_for_where_the_images_are_not_at_hand(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    away = dict(name="folder", path=str(tmp_path / "away"), resolution=8, split="train")
    weighted = stored(tmp_path / "weighted", folder(written(tmp_path / "data")))
    plain = stored(tmp_path / "plain", folder(written(tmp_path / "data", weight=None)))
    found = data.open_all(away, weighted, IDENTITY).examples
    assert found.weights.tolist() == WEIGHTS and found.item(3)["weight"] == 0.5
    assert "as when the features were made" in caplog.text
    assert data.open_all(away | {"weight_column": ""}, weighted, IDENTITY).examples.weights is None
    assert data.open_all(away, plain, IDENTITY).examples.weights is None
    assert not (tmp_path / "plain" / "train" / "weights.npy").exists()
    assert found.fingerprint == data.Features(tmp_path / "plain" / "train").fingerprint
    for features in (weighted, plain):
        with pytest.raises(ValueError, match="weight_column='reward'.*not at hand"):
            data.open_all(away | {"weight_column": "reward"}, features, IDENTITY)


def test_converted_features_take_weights_by_the_names_of_their_files_only(tmp_path):
    dataset = folder(written(tmp_path / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), "fingerprint", "")
        features = stored(tmp_path / "features", dataset)
    options = dict(name="folder", path=str(tmp_path / "data"), resolution=8, split="train")
    assert data.open_all(options, features, IDENTITY).examples.weights.tolist() == WEIGHTS
    table = tmp_path / "data" / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    with pytest.raises(ValueError, match="not named as those of the table"):
        data.open_all(options, features, IDENTITY)


# The losses

def test_the_mean_over_a_batch_is_that_of_its_parts():
    losses, each = torch.rand(8, dtype=torch.float64), torch.tensor(WEIGHTS, dtype=torch.float64)
    whole = diffusion.loss.batch_mean(losses, each)
    assert whole.item() == pytest.approx(sum(w * x for w, x in zip(WEIGHTS, losses.tolist())) / 8)
    parts = [diffusion.loss.batch_mean(losses[k:k + 2], each[k:k + 2]) for k in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    assert diffusion.loss.batch_mean(losses) == losses.mean() == diffusion.loss.batch_mean(losses, torch.ones(8))
    maps = losses.reshape(2, 1, 2, 2)
    assert training.average(maps, torch.tensor([2.0, 0.0])).item() == pytest.approx(maps[0].mean().item())
    assert training.average(maps, torch.ones(2)).item() == pytest.approx(training.average(maps).item())


def test_the_perceptual_loss_counts_images_by_their_weight():
    from torchvision.models import vgg16
    torch.manual_seed(0)
    judge = training.Perceptual(vgg16(weights=None, init_weights=False).features.state_dict())
    x, y = torch.rand(2, 2, 3, 16, 16)
    assert judge(x, y, torch.tensor([2.0, 0.0])).item() == pytest.approx(judge(x[:1], y[:1]).item(), rel=1e-4)
    assert judge(x, y, torch.ones(2)).item() == pytest.approx(judge(x, y).item(), rel=1e-5)


UVIT = {"nnet.img_size": 8, "nnet.patch_size": 4, "nnet.embed_dim": 32, "nnet.depth": 2, "nnet.num_heads": 2}
LATENT = UVIT | {"nnet.in_chans": 3, "features.path": ""}
UNET = {"nnet.sample_size": 8, "nnet.block_out_channels": (16, 32),
        "nnet.down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "nnet.up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "nnet.cross_attention_dim": 16, "nnet.attention_head_dim": 2,
        "nnet.norm_num_groups": 8}
ADM = {"nnet.image_size": 8, "nnet.model_channels": 32, "nnet.num_res_blocks": 1, "nnet.channel_mult": (1,),
       "nnet.attention_resolutions": ()}
DIT = {"nnet.model": "", "nnet.input_size": 8, "nnet.patch_size": 4, "nnet.hidden_size": 32, "nnet.depth": 2, "nnet.num_heads": 2,
       "train.time_sampler": "loss_second_moment"}
TRAINERS = {  # script: (config, what is small in it)
    "train": ("folder64_uvit_label", UVIT),
    "train_ldm": ("imagenet256_uvit_large", LATENT | {"nnet.num_classes": 3}),
    "train_ldm_discrete": ("imagenet256_uvit_huge", LATENT | {"nnet.num_classes": 3}),
    "train_t2i_discrete": ("folder64_vap", UVIT | {"train.prototype_weight": 0.0}),
    "train_class_ldm": ("folder64_unet_label", UNET),
    "train_controlnet": ("folder64_controlnet", UNET | {"nnet.conditioning_embedding_out_channels": (16,)}),
    "train_guided_diffusion": ("folder64_adm", ADM | {"train.time_sampler": "loss_second_moment"}),
    "train_dit": ("folder64_dit_label", DIT),
    "train_classifier": ("folder64_adm_classifier", ADM | {"dataset.crop": "center"}),
    "train_sd_finetune": ("medical512_sd_finetune", {"nnet.sample_size": 8, "dataset.resolution": 16,
                                                     "encoder.max_length": tiny_sd.WINDOW, "dataset.path_column": "file_name",
                                                     "dataset.text_column": "text"}),
    "train_pixart_lora": ("kvasir512_pixart_lora", {"nnet.sample_size": 8, "dataset.resolution": 16, "colour.every": 0,
                                                   "nnet.base_dtype": "", "encoder.dtype": "", "optimizer.name": "adamw"}),
    "train_autoencoder": ("folder256_autoencoder", {"dataset.resolution": 32, "nnet.path": "", "nnet.block_out_channels": (8, 8),
                                                    "nnet.norm_num_groups": 4, "train.adversarial_weight": 0.1,
                                                    "train.adversarial_start": 0, "train.adversarial_channels": 8}),
}


class Enough(Exception):
    """Ends a training where it would begin to take steps."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Networks of others, tiny: {trainer: folder or file}."""
    place = tmp_path_factory.mktemp("models")
    return {"train_sd_finetune": tiny_sd.save(place / "sd"), "train_pixart_lora": tiny_pixart.save(place / "pixart")}


def config_of(name, root, models):
    published, small = TRAINERS[name]
    config = importlib.import_module(f"configs.{published}").get_config()
    with config.unlocked():
        if config.dataset.name == "imagenet":
            config.dataset, config.codec = d(name="folder"), d(name="pixels")
    config.dataset.update(dict(path=str(root / "metadata.csv" if config.dataset.name == "path_text" else root), resolution=8))
    config.dataset.update({key: value for key, value in dict(split="train", holdout=0.0, random_flip=False).items()
                           if key in config.dataset})
    config.train.update(dict(batch_size=4, accumulation=1, workers=0, validation_split="", mixed_precision="no"))
    config.nnet.update({key: value for key, value in dict(use_checkpoint=False).items() if key in config.nnet})
    if "features" in config and config.features.path:
        config.features.path = "auto"
    config.nnet.update({"path": str(models[name])} if name in models else {})
    config.update_from_flattened_dict(small)
    return config


def with_features(config, place):
    """The same, with features made beforehand as by scripts/extract_feature.py."""
    config.features.path = str(place)
    run = engine.start(config, "", claim=False)
    extraction.make(run, config, "train", pipeline.image_codec(config, run.device), pipeline.text_encoder(config, run.device))
    run.finish()
    return config


def trained(name, root, models, workdir, monkeypatch, probe):
    """Call a training up to its first step, at which `probe(net, batch, loss_fn)` is called."""
    def fit(run, state, stream, loss_fn, *_, **__):
        state.net.train()
        probe(state.net, next(stream(0)), loss_fn)
        run.finish()
        raise Enough

    monkeypatch.setattr(engine, "fit", fit)
    monkeypatch.setattr(evaluation, "base_weights", lambda *_: {})  # a ControlNet on a UNet that has learned nothing
    config = config_of(name, root, models)
    config = with_features(config, workdir / "features") if name == "train_t2i_discrete" else config
    with pytest.raises(Enough):
        importlib.import_module(name).train(config, str(workdir))


@pytest.mark.parametrize("name", TRAINERS)
def test_every_training_multiplies_each_image_s_loss_by_its_weight(name, root, models, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(diffusion.time_sampling.LossSecondMoment, "update", lambda self, t, losses: seen.append(losses.detach()))

    def probe(net, batch, loss_fn):
        assert batch["weight"].tolist() == [WEIGHTS[i] for i in batch["index"]], "the column reaches the training"
        content = "image" if "image" in batch else "mean"

        def gradient(weights, changed=None):
            own = {key: value.clone() for key, value in batch.items() if key != "weight"}
            own |= {} if weights is None else {"weight": torch.tensor(weights)}
            if changed is not None:
                own[content][changed] = 3 - 2 * own[content][changed]
            torch.manual_seed(0)
            net.zero_grad()
            loss, _ = loss_fn(net, own)
            loss.backward()
            return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in net.parameters() if p.grad is not None)])

        same = dict(rtol=1e-4, atol=1e-6)
        some = gradient([2.0, 0.0, 1.0, 0.5])
        assert some[1:].abs().max() > 0
        torch.testing.assert_close(gradient([2.0, 0.0, 1.0, 0.5], changed=1), some, **same)  # an image of weight 0 is not there
        assert (gradient([2.0, 0.0, 1.0, 0.5], changed=0) - some).norm() > 1e-3 * some.norm()
        torch.testing.assert_close(gradient([4.0, 0.0, 2.0, 1.0]), 2 * some, **same)
        torch.testing.assert_close(some + gradient([0.0, 2.0, 1.0, 1.5]), 2 * gradient(None), **same)
        torch.testing.assert_close(gradient([1.0] * 4), gradient(None), **same)

    trained(name, root, models, tmp_path / "run", monkeypatch, probe)
    assert bool(seen) == (name in ("train_dit", "train_guided_diffusion"))
    assert all(torch.equal(seen[0], each) for k, each in enumerate(seen) if k not in (1, 2)), "the sampler of times sees no weights"


def test_twice_the_weights_are_twice_the_losses_of_training_and_validation(inside, tmp_path):
    """Also in parts of a batch, and beside held-out images; the log says how much images weigh."""
    split = ["train"] * 6 + ["val"] * 2
    found = {}
    for factor in (1, 2):
        path = written(tmp_path / f"data{factor}", [factor * weight for weight in WEIGHTS], split=split)
        done = inside("train.py", "--config=configs/folder64_uvit_label.py", f"--config.dataset.path={path}",
                      "--config.dataset.holdout=0.0", "--config.dataset.resolution=8",
                      *(f"--config.{key}={value}" for key, value in UVIT.items()),
                      "--config.train.batch_size=4", "--config.train.accumulation=2", "--config.train.n_steps=2",
                      "--config.train.log_interval=1", "--config.train.validation_interval=2", "--config.train.preview_interval=0",
                      "--config.train.eval_interval=0", "--config.train.workers=0", "--config.optimizer.lr=1e-12",
                      "--config.train.mixed_precision=no", f"--workdir={tmp_path}/run{factor}")
        assert done.stderr.count("6 images with weights") == 1 == done.stderr.count("2 images with weights")
        found[factor] = [line["loss"] for line in engine.read_metrics(tmp_path / f"run{factor}" / "metrics.jsonl")]
    assert len(found[1]) == 3 and found[2] == pytest.approx([2 * loss for loss in found[1]], rel=1e-5)


def test_a_run_that_goes_on_with_other_weights_says_so(inside, tmp_path):
    path, run = written(tmp_path / "data", WEIGHTS), tmp_path / "run"
    options = ["--config=configs/folder64_uvit_label.py", f"--config.dataset.path={path}", "--config.dataset.holdout=0.0",
               "--config.dataset.split=", "--config.train.validation_split=", "--config.dataset.resolution=8",
               *(f"--config.{key}={value}" for key, value in UVIT.items()), "--config.train.batch_size=4",
               "--config.train.preview_interval=0", "--config.train.eval_interval=0", "--config.train.validation_interval=0",
               "--config.train.workers=0", f"--workdir={run}"]
    inside("train.py", *options, "--config.train.n_steps=1")
    first = json.loads((run / "data.json").read_text())["weights"]
    assert first["images"] == len(WEIGHTS) and first["mean"] == pytest.approx(np.mean(WEIGHTS), abs=1e-5)
    assert "weights.sha256" not in inside("train.py", *options, "--config.train.n_steps=2").stderr
    written(tmp_path / "data", [2 * weight for weight in WEIGHTS])
    assert "another setting: weights.mean" in inside("train.py", *options, "--config.train.n_steps=3").stderr
    assert json.loads((run / "data.json").read_text())["weights"]["mean"] == pytest.approx(2 * first["mean"], abs=1e-5)


def test_a_run_that_is_older_than_weights_is_evaluated_without(tmp_path):
    config = {"seed": 1, "dataset": {"name": "folder", "path": "x"}}
    for name, wanted in (("folder", ""), ("phantoms", None)):
        config["dataset"]["name"] = name
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert from_run.get_config(tmp_path / "config.json").dataset.get("weight_column") == wanted
    config["dataset"] |= {"name": "folder", "weight_column": "score"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert from_run.get_config(tmp_path / "config.json").dataset.weight_column == "score"
