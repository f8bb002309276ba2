"""Feature networks: pytorch-fid's path, names that tell the truth, missing weights, input checks."""

import urllib.error

import pytest
import torch
from torch.nn import functional as F

from libs.metrics import extract, extractor, features, networks, weights


def pictures(n=3, channels=3, size=40, seed=0):
    return torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed),
                         dtype=torch.uint8)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A TORCH_HOME with a weights file of the right name and random content."""
    pytest.importorskip("pytorch_fid")
    home = tmp_path_factory.mktemp("torch")
    target = home / "hub/checkpoints" / networks.INCEPTION_FILE
    target.parent.mkdir(parents=True)
    torch.save(networks.inception(weights="random").module.network.state_dict(), target)
    return home


def plain(module):
    return {key: value.contiguous() for key, value in module.state_dict().items()}


def offline(*args, **kwargs):
    raise urllib.error.URLError("no network")


def test_inception_equals_pytorch_fid_with_the_same_file(hub, monkeypatch):
    from pytorch_fid.inception import InceptionV3

    monkeypatch.setenv("TORCH_HOME", str(hub))
    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    ours = extractor("inception")
    assert ours.dims == 2048 and len(ours.classes) == 1008
    # The file is not the published one, so its features must not be called FID's.
    assert ours.name.startswith("inception_") and ours.name != "inception_random"
    images = pictures(2)
    with torch.inference_mode():
        expected = InceptionV3([3]).eval()(images / 255)[0].flatten(1)
    found, probabilities = ours.both(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert found.dtype == torch.float32 and found.std(dim=0).max() > 0
    logits = expected @ ours.module.network.fc.weight.T
    torch.testing.assert_close(probabilities, F.softmax(logits, dim=1), rtol=1e-3, atol=1e-6)
    grey = pictures(1, channels=1)
    assert torch.equal(ours(grey), ours(grey.repeat(1, 3, 1, 1)))


def test_published_weights_alone_carry_the_plain_name(tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    path.write_bytes(b"content")
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # sha256 of b"content"
    assert weights.reported_name("inception", str(path), path, f"inception-{digest[:8]}.pth") == "inception"
    assert weights.reported_name("inception", "", path, networks.INCEPTION_FILE) == "inception_ed7002b4"
    assert weights.reported_name("inception", "random", None, networks.INCEPTION_FILE) == "inception_random"


def test_missing_weights_say_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    place = tmp_path / "hub/checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(FileNotFoundError, match="no network") as caught:
        extractor("inception")
    assert str(place) in str(caught.value) and networks.INCEPTION_URL in str(caught.value)
    assert list(place.parent.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="resnet18-f37072fd.pth"):
        extractor("torchvision:resnet18")
    with pytest.raises(FileNotFoundError, match="huggingface.co/timm/vit_base_patch14_dinov2"):
        extractor("dinov2")
    with pytest.raises(FileNotFoundError, match="is no file"):
        extractor("inception", weights=str(tmp_path / "nothing.pth"))


def test_a_download_that_is_not_the_file_is_refused(tmp_path, monkeypatch):
    class Answer:
        def __init__(self, content):
            self.content = content

        def read(self, size):
            content, self.content = self.content, b""
            return content

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda url, timeout: Answer(b"content"))
    with pytest.raises(FileNotFoundError, match="hash ed7002b4, not 6726825d"):
        weights.fetch(networks.INCEPTION_URL)
    assert list((tmp_path / "hub/checkpoints").iterdir()) == []
    assert weights.fetch("https://a.b/net-ed7002b4.pth").read_bytes() == b"content"


def test_weights_that_would_run_code_or_do_not_fit_are_refused(tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return print, ("code ran",)

    path = tmp_path / "harmful.pth"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="cannot be read safely as weights"):
        extractor("torchvision:resnet18", weights=str(path))
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of this network"):
        extractor("torchvision:resnet18", weights=str(tmp_path / "other.pth"))


def test_torchvision_features_enter_the_last_layer(tmp_path):
    from safetensors.torch import save_file

    images = pictures(2)
    random = extractor("torchvision:resnet18", weights="random")
    assert (random.name, random.dims, len(random.classes)) == ("torchvision_resnet18_random", 512, 1000)
    found, probabilities = random.both(images)
    torch.testing.assert_close(random.module.head(found).softmax(1), probabilities)
    resized = F.interpolate(images / 255, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (resized - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(random.prepare(images), expected)
    save_file(plain(random.module.network), tmp_path / "net.safetensors")
    local = extractor("torchvision:resnet18", weights=str(tmp_path / "net.safetensors"))
    assert torch.equal(local(images), found)
    assert local.name.startswith("torchvision_resnet18_") and local.name != random.name
    assert local.fingerprint != random.fingerprint  # another name; the same weights under it
    assert extractor("torchvision:resnet18", weights="random").fingerprint == random.fingerprint
    assert extractor("torchvision:resnet18", weights="random", seed=1).fingerprint != random.fingerprint


def test_timm_models_and_dinov2(tmp_path):
    pytest.importorskip("timm")
    from safetensors.torch import save_file

    net = extractor("timm:test_vit", weights="random")
    found, probabilities = net.both(pictures(2))
    assert net.name == "timm_test_vit_random" and found.shape == (2, net.dims)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    save_file(plain(net.module.model), tmp_path / "net.safetensors")
    local = extractor("timm:test_vit", weights=str(tmp_path / "net.safetensors"))
    assert torch.equal(local(pictures(2)), found)
    with pytest.raises(ValueError, match="timm has no model 'test_vt'"):
        extractor("timm:test_vt")
    dino = extractor("dinov2", weights="random")
    assert (dino.name, dino.dims, dino.classes, dino.built.size) == ("dinov2_vitb14_random", 768, None, 224)
    with pytest.raises(ValueError, match="has no classes"):
        dino.probabilities(pictures(1))


def test_a_backbone_fine_tuned_on_other_classes_is_named_by_its_file(tmp_path):
    """As the network of a domain for a Fréchet distance: the head of the file decides how many classes there are."""
    pytest.importorskip("timm")
    import timm
    from torchvision import models
    torch.manual_seed(0)
    nets = {"timm:test_resnet": timm.create_model("test_resnet", num_classes=8), "torchvision:shufflenet_v2_x0_5":
            models.shufflenet_v2_x0_5(num_classes=8)}
    for name, net in nets.items():
        torch.save({"state_dict": net.state_dict()}, tmp_path / "own.pth")
        found = extractor(f"{name}@{tmp_path}/own.pth")
        assert found.name.startswith(f"{name.replace(':', '_')}_") and len(found.classes) == 8
        with torch.inference_mode():
            expected = net.eval()(found.prepare(pictures(2)))
        torch.testing.assert_close(found.both(pictures(2))[1], expected.softmax(1))
        assert extractor(name, weights=str(tmp_path / "own.pth")).fingerprint == found.fingerprint
        torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="other.pth does not hold the weights of this network"):
            extractor(f"{name}@{tmp_path}/other.pth")
    for name, hint in ((f"{tmp_path}/own.pth", "is a file of weights; say of which network: timm:<model>@"),
                       ("timm:test_resnet@", "expected such as timm:resnet50@"), ("colour@random", "expected such as")):
        with pytest.raises(ValueError, match=hint):
            extractor(name)
    for name in (f"timm:test_resnet@{tmp_path}/absent.pth", f"{tmp_path}/absent"):
        with pytest.raises(FileNotFoundError, match="absent"):
            extractor(name)


def test_unknown_names_and_images_are_refused():
    for name, hint in (("incepton", "mean 'inception'"), ("timm", "timm:<model>"), ("fid", "known are")):
        with pytest.raises(ValueError, match=hint):
            extractor(name)
    with pytest.raises(ValueError, match="torchvision has no model 'resnet17'"):
        extractor("torchvision:resnet17")
    for images, hint in ((pictures().float(), "float32; expected a uint8"), (pictures()[0], "shape"),
                         (pictures(channels=2), "1 or 3 channels"), (pictures().numpy(), "ndarray")):
        with pytest.raises(ValueError, match=hint):
            features.check_images(images)


def test_features_are_float32_whatever_the_caller_trains_in():
    net = extractor("timm:test_resnet", weights="random")
    images, kept = pictures(), torch.get_float32_matmul_precision()
    expected = net(images)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = net(images)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(kept)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert not found.requires_grad


def test_extract_keeps_every_image_in_order():
    net = extractor("timm:test_resnet", weights="random")
    images = pictures(7)
    found, probabilities = extract(net, images, batch_size=3)
    assert found.shape == (7, net.dims) and probabilities.shape == (7, len(net.classes))
    torch.testing.assert_close(found, net(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extract(net, iter(images.split(2)))[0], found, rtol=1e-4, atol=1e-5)
    assert extract(net, images[:0])[0].shape == (0, net.dims)


def test_colour_statistics_are_those_of_the_images_as_they_are():
    images = torch.randint(0, 256, (5, 3, 20, 24), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    found = extractor("colour")
    x = images.double() / 127.5 - 1
    expected = torch.cat([x.mean((2, 3)), x.flatten(2).var(2).sqrt()], dim=1)
    assert torch.allclose(found(images).double(), expected, atol=1e-6) and (found.name, found.dims) == ("colour", 6)
    assert found.classes is None and torch.equal(found(images[:, :1])[:, 0], found(images[:, :1])[:, 2])
