"""Weights of others: the original's checkpoints and diffusers' folders come under the names of our networks."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from libs import backbones, engine

SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
NAMES = ["naevus", "melanoma", "keratosis"]


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    ldm = backbones.get("unet_label", num_classes=3, **SMALL)
    return ldm, backbones.get("controlnet", conditioning_channels=3, legacy=True, **SMALL)


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def write_ldm(path, net, table="embedding.weight", **more):
    optimizer = torch.optim.AdamW(net.parameters())
    torch.save({"unet": net.unet.state_dict(), "class_embedder": {table: net.class_embedder.embedding.weight.detach()},
                "optimizer": optimizer.state_dict(), "lr_scheduler": {"T_max": 10, "base_lrs": [1e-4]}, "epoch": 3,
                "global_step": 40, "best_loss": 0.1, "class_names": NAMES, "num_classes": 3,
                "config": {"embed_dim": 12, "cfg_dropout": 0.1}, **more}, path)
    return path


def write_controlnet(path, net, **more):
    torch.save({"controlnet": net.controlnet.state_dict(), "dummy_encoder": {"embedding": net.dummy_encoder.embedding.detach()},
                "optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {}, "epoch": 1, "global_step": 4, "best_loss": 0.2,
                "config": {"mask_channels": 1, "freeze_unet": True}, **more}, path)
    return path


@pytest.mark.parametrize("table", ["embedding.weight", "class_embedding.weight", "table"])
def test_an_original_checkpoint_is_our_network(tmp_path, nets, table):
    """Whatever the table of classes is called there, it is the one tensor of its part."""
    file = write_ldm(tmp_path / "checkpoint_best.pt", nets[0], table)
    weights, step, source = engine.load_weights(file)
    assert equal(weights, nets[0].state_dict()) and step is None and source == file
    backbones.load(backbones.get("unet_label", num_classes=3, **SMALL), weights)
    assert engine.class_names(file) == NAMES
    assert len(engine.weights_hash(file)) == 16


def test_a_controlnet_checkpoint_with_the_unet_it_was_trained_with(tmp_path, nets, caplog):
    ldm, control = nets
    write_ldm(tmp_path / "ldm.pt", ldm)
    file = write_controlnet(tmp_path / "tuned.pt", control, unet=control.unet.state_dict(),
                            config={"ldm_checkpoint": str(tmp_path / "ldm.pt")})
    with caplog.at_level(logging.INFO):
        weights, _, _ = engine.load_weights(file)
    assert equal(weights, control.state_dict())  # not the UNet of the LDM, which the original takes by mistake
    assert "its own UNet is used" in caplog.text


def test_a_frozen_unet_comes_from_the_ldm_checkpoint(tmp_path, nets, caplog):
    ldm, control = nets
    write_ldm(tmp_path / "ldm.pt", ldm)
    wanted = control.state_dict() | {f"unet.{name}": value for name, value in ldm.unet.state_dict().items()}
    named = write_controlnet(tmp_path / "named.pt", control, config={"ldm_checkpoint": "ldm.pt"})
    lost = write_controlnet(tmp_path / "lost.pt", control, config={"ldm_checkpoint": "/nowhere/ldm.pt"})
    assert equal(engine.load_weights(named)[0], wanted)

    both = f"{tmp_path / 'ldm.pt'},{lost}"
    weights, _, source = engine.load_weights(both)
    assert equal(weights, wanted) and engine.class_names(source) == NAMES and "give both files" not in caplog.text
    assert engine.weights_hash(source) == engine.weights_hash(both) != engine.weights_hash(lost)
    caplog.clear()
    weights, _, _ = engine.load_weights(lost)
    assert not any(name.startswith("unet.") for name in weights) and "give both files" in caplog.text
    with pytest.raises(ValueError, match="missing from the checkpoint: unet."):
        backbones.load(backbones.get("controlnet", conditioning_channels=3, legacy=True, **SMALL), weights)


@pytest.fixture
def folder(tmp_path, nets):
    """A pipeline as diffusers' example scripts leave it: bare, its UNet also averaged."""
    ldm, control = nets
    ldm.unet.save_pretrained(tmp_path / "pipe/unet")
    control.unet.save_pretrained(tmp_path / "pipe/unet_ema")
    control.controlnet.save_pretrained(tmp_path / "pipe/controlnet")
    (tmp_path / "pipe/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionControlNetPipeline",
                                                               "id2label": {"10": "c", "2": "b", "0": "a"}}))
    return tmp_path / "pipe"


def part(net, name):
    return {f"{name}.{key}": value for key, value in getattr(net, name).state_dict().items()}


def test_a_pipeline_of_diffusers(folder, nets, caplog):
    ldm, control = nets
    with caplog.at_level(logging.INFO):
        weights, step, source = engine.load_weights(folder)
    assert equal(weights, part(control, "unet") | part(control, "controlnet")) and (step, source) == (None, folder)
    assert "moving average unet_ema is used in place of unet" in caplog.text
    assert engine.class_names(folder) == ["a", "b", "c"]
    before = engine.weights_hash(folder)

    for bare in (folder / "unet", folder / "unet_ema"):
        assert equal(engine.load_weights(bare)[0], part(control, "unet"))
    assert equal(engine.load_weights(folder / "controlnet")[0], part(control, "controlnet"))
    (folder / "unet_ema/config.json").unlink()
    assert equal(engine.load_weights(folder / "unet")[0], part(ldm, "unet"))
    assert engine.weights_hash(folder) != before and engine.class_names(folder / "unet") is None


def test_shards_and_files_of_torch(tmp_path, nets):
    state = nets[0].unet.state_dict()
    nets[0].unet.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    nets[0].unet.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    for folder in ("shards", "bin"):
        assert equal(engine.load_weights(tmp_path / folder)[0], {f"unet.{name}": value for name, value in state.items()})
    next((tmp_path / "shards").glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match="names files that are not there: diffusion_pytorch_model-00002"):
        engine.load_weights(tmp_path / "shards")


def test_what_cannot_be_read_says_what_was_expected(tmp_path, nets):
    def saved(name, held):
        torch.save(held, tmp_path / name)
        return tmp_path / name

    unet = nets[0].unet.state_dict()
    for file, problem in (
            (saved("epoch.pt", {"model": {}, "epoch": 3}), r"epoch.pt does not hold a state_dict.*unet and class_embedder.*epoch"),
            (saved("list.pt", [1, 2]), "list.pt does not hold a state_dict.*but list"),
            (saved("two.pt", {"unet": unet, "class_embedder": {"a": torch.ones(2), "b": torch.ones(2)}}),
             "two.pt: class_embedder was expected to hold one tensor, and holds 2: a, b"),
            (saved("flat.pt", {"unet": unet, "class_embedder": {"a": torch.ones(2)}}), r"flat.pt.*shape \(2,\); expected \(cl"),
            (saved("deep.pt", {"unet": {"down": {"w": torch.ones(2)}}}), "deep.pt: unet is no state_dict.*keys .*down")):
        with pytest.raises(ValueError, match=problem):
            engine.load_weights(file)

    def folder(name, text, weights=None):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        if weights:
            save_file(weights, tmp_path / name / "diffusion_pytorch_model.safetensors")
        return tmp_path / name

    for where, problem in (
            (folder("vae", '{"_class_name": "AutoencoderKL"}'), "vae holds AutoencoderKL; expected UNet2DConditionModel"),
            (folder("bare", '{"_class_name": "UNet2DConditionModel"}'), "bare has a config.json but no weights: expected diff"),
            (folder("torn", '{"_class_name'), "torn/config.json cannot be read"),
            (folder("run", '{"seed": 1}'), "run holds no checkpoint: .*folder of diffusers")):
        with pytest.raises(ValueError, match=problem):
            engine.load_weights(where)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="empty has no unet/, transformer/ or controlnet/"):
        engine.load_weights(tmp_path / "empty")
