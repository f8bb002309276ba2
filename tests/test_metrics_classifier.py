"""The feature network: it learns, repeats itself bit for bit, and its folder is whole or refused."""

import json

import pytest
import torch

from libs.metrics import extractor, load_classifier, recognised, train_classifier

CLASSES = ["dark disc", "bright disc", "dark square", "bright square"]


def shapes(n, channels=3, size=16, seed=0):
    """Discs and squares, dark and bright, of random place and size, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    place = torch.rand(n, 2, 1, 1, generator=generator) * 0.4 - 0.2
    half = 0.45 + 0.2 * torch.rand(n, 1, 1, generator=generator)
    grid = torch.linspace(-1, 1, size)
    across, down = (grid[None, :] - place[:, 0]).abs(), (grid[:, None] - place[:, 1]).abs()
    disc = (across**2 + down**2).sqrt() < half
    square = torch.maximum(across, down) < half
    inside = torch.where((labels < 2)[:, None, None], disc, square)
    colour = torch.where(labels % 2 == 0, 60.0, 200.0)[:, None, None]
    images = torch.where(inside, colour, 130.0)[:, None].expand(-1, channels, -1, -1)
    noise = 8 * torch.randn(n, channels, size, size, generator=generator)
    return (images + noise).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def trained():
    images, labels = shapes(1000)
    return train_classifier(images, labels, classes=CLASSES, name="shapes16", fingerprint="abc", width=16)


def test_it_recognises_new_images(trained, tmp_path):
    assert trained.report["accuracy"] > 0.95 and trained.report["balanced"] > 0.95
    assert (trained.report["trained_on"], trained.report["held_out"]) == (848, 152)
    trained.save(tmp_path)
    net = extractor(f"classifier:{tmp_path}")
    assert (net.name, net.dims, net.classes) == ("classifier-shapes16", 64, CLASSES)
    images, labels = shapes(200, seed=1)
    features, probabilities = net.both(images)
    assert recognised(probabilities, labels).mean() > 0.95
    with torch.inference_mode():
        expected = trained((images / 255 - 0.5) / 0.5)[0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert net(shapes(2, size=32)[0]).shape == (2, 64)  # another size is resized
    assert net(images[:2, :1]).shape == (2, 64)         # grey is repeated


def test_it_is_a_function_of_the_seed():
    images, labels = shapes(120)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_classifier(images, labels, epochs=2, seed=3)
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again, other = (train_classifier(images, labels, epochs=2, seed=seed) for seed in (3, 4))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_held_out_images_are_not_trained_on():
    images, labels = shapes(80)
    wrong = torch.arange(40)
    spoilt = images.clone()
    spoilt[wrong] = 0
    nets = [train_classifier(each, labels, epochs=1, held_out=wrong) for each in (images, spoilt)]
    assert torch.equal(nets[0].head.weight, nets[1].head.weight)
    assert nets[0].report["held_out"] == 40


def test_its_folder_is_whole_or_refused(trained, tmp_path):
    trained.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]
    back = load_classifier(tmp_path, fingerprint="abc")
    assert back.report == trained.report
    for key, value in trained.state_dict().items():
        assert torch.equal(value, back.state_dict()[key])
    with pytest.raises(ValueError, match="trained on other data: its fingerprint is 'abc'"):
        load_classifier(tmp_path, fingerprint="xyz")
    with pytest.raises(FileNotFoundError, match="train_feature_network.py"):
        load_classifier(tmp_path / "nowhere")
    content = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="not the file that config.json describes"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"network": {}})[:-3])
    with pytest.raises(ValueError, match="no usable feature network"):
        load_classifier(tmp_path)


def test_one_channel_networks_refuse_colour(tmp_path):
    images, labels = shapes(60, channels=1)
    train_classifier(images, labels, epochs=1, flips=("horizontal", "vertical")).save(tmp_path)
    net = extractor(f"classifier:{tmp_path}")
    assert net.name == "classifier" and net.classes == ["0", "1", "2", "3"] and net(images).shape == (60, 64)
    with pytest.raises(ValueError, match="images of 1 channel; these have 3"):
        net(shapes(2)[0])
    with pytest.raises(ValueError, match="brings its own weights"):
        extractor(f"classifier:{tmp_path}", weights="random")


def test_bad_input_is_named():
    images, labels = shapes(20)
    for kwargs, hint in (({"classes": 2}, "labels run from 0 to 3; 2 classes"),
                         ({"flips": ("diagonal",)}, "diagonal"),
                         ({"epochs": -1}, "epochs -1"), ({"held_out": range(20)}, "0 images to train on")):
        with pytest.raises(ValueError, match=hint):
            train_classifier(images, labels, **kwargs)
    with pytest.raises(ValueError, match="uint8"):
        train_classifier(images.float(), labels)
    with pytest.raises(ValueError, match="labels for 20 images"):
        train_classifier(images, labels[:-1])
    with pytest.raises(ValueError, match="at least 2"):
        train_classifier(images, torch.zeros(20))
