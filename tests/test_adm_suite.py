"""The ADM suite: its network and resizing, archives in batches, each number against its formula, the script."""

import json
import tracemalloc
import urllib.error
import zipfile

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from libs.metrics import adm_suite, networks, weights
from libs.metrics.gaussian import load_stats

RNG = np.random.default_rng


def pictures(n, seed=0, height=5, width=6, channels=3):
    return RNG(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


class Plain:
    """In place of the network: a few pixels are the features, so that every number can be had by hand."""

    name, device, dims = "inception", torch.device("cpu"), {"pool": 4, "spatial": 7}

    def __call__(self, images):
        flat = images.expand(-1, 3, -1, -1).flatten(1).float()
        return flat[:, :4], flat[:, 10:17]

    def probabilities(self, features):
        return (features / 100).softmax(dim=1)


def of(reference, samples, network=None, **kwargs):
    return adm_suite.scores(adm_suite.open_archives(reference, samples), network or Plain(), **kwargs)


def frechet(x, y):
    """By numpy's eigenvalues of the product of two covariances, or of the small matrix that shares them."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    product = (a.T @ a) @ (b.T @ b) if x.shape[1] < len(x) else (a @ b.T) @ (b @ a.T)
    root = np.sqrt(np.abs(np.linalg.eigvals(product))).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum() - 2 * root


def test_resizing_is_that_of_tensorflow_1():
    # 3 pixels to 5 lie at 0, 0.6, 1.2, 1.8, 2.4; the last beyond pixel 2, whose value stays.
    row = torch.tensor([0.0, 10.0, 30.0])
    found = adm_suite.tf1_resize(row.view(1, 1, 1, 3).expand(1, 1, 3, 3), 5)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 6, 14, 26, 30]))
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found))
    # Both axes: 2 pixels to 4 lie at 0, 0.5, 1, 1.5. Halved, every second pixel is taken as it is.
    found = adm_suite.tf1_resize(torch.tensor([[0.0, 8], [16, 40]]).view(1, 1, 2, 2), 4)
    expected = [[0.0, 4, 8, 8], [8, 16, 24, 24], [16, 28, 40, 40], [16, 28, 40, 40]]
    assert found[0, 0].tolist() == expected
    x = torch.rand(2, 3, 6, 8)
    assert torch.equal(adm_suite.tf1_resize(x[..., :6], 3), x[:, :, ::2, :6:2])
    assert torch.equal(adm_suite.tf1_resize(x[..., :6], 6), x[..., :6])
    usual = F.interpolate(x, size=(6, 6), mode="bilinear", align_corners=False)
    assert (adm_suite.tf1_resize(x, 6) - usual).abs().max() > 0.05


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("pytorch_fid")
    return adm_suite.Network(weights="random")


def test_network_sees_pixels_as_the_graph_of_2015_does(network):
    assert network.name == "inception_random"
    images = torch.from_numpy(pictures(2, height=299, width=299)).permute(0, 3, 1, 2)
    assert torch.equal(network.prepare(images), (images.double() / 128 - 1).float())      # 0 -> -1, 255 -> 127/128
    grey = images[:1, :1]
    assert torch.equal(network.prepare(grey), network.prepare(grey.repeat(1, 3, 1, 1)))
    assert network.prepare(images[:, :, :20, :30]).shape == (2, 3, 299, 299)


def test_sfid_is_of_mixed_6_conv(network, tmp_path):
    """The graph's blocks are mixed, mixed_1, ...: its mixed_6 is the seventh of ours. Channels are last there."""
    inside = network.module.network
    blocks = [name for name, _ in inside.named_children() if name.startswith("Mixed")]
    assert blocks[6] == "Mixed_6d" and len(blocks) == 11
    stem = [name for name, _ in inside.named_children()][:7]
    assert stem[3:] == ["maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"]
    sets = [pictures(4, seed, 299, 299) for seed in (1, 2)]
    expected = []
    with torch.inference_mode():
        for each in sets:
            x = torch.from_numpy(each.astype(np.float32) / 128 - 1).permute(0, 3, 1, 2)
            for name in stem + blocks[:6]:
                x = getattr(inside, name)(x)
            branch = inside.Mixed_6d.branch1x1
            conv = F.conv2d(x, branch.conv.weight)[:, :7]
            bn = branch.bn
            scale = (bn.weight / (bn.running_var + bn.eps).sqrt())[:7].view(7, 1, 1)
            shift = bn.bias[:7].view(7, 1, 1) - bn.running_mean[:7].view(7, 1, 1) * scale
            expected.append((conv * scale + shift).clamp(min=0).numpy().transpose(0, 2, 3, 1).reshape(4, 2023))
    paths = [saved(tmp_path / f"{k}.npz", arr_0=each) for k, each in enumerate(sets)]
    found = of(paths[1], paths[0], network, batch_size=3)
    both = [adm_suite.measure(adm_suite.Archive(path), network) for path in paths]
    for side, values in zip(both, expected):
        assert values.std() > 0
        np.testing.assert_allclose(side.spatial, values, rtol=1e-3, atol=1e-4 * values.max())
    pools = [side.pool.numpy() for side in both]
    assert found["scores"]["sfd_inception_random"] == pytest.approx(frechet(*expected), rel=1e-3)
    assert found["scores"]["fd_inception_random"] == pytest.approx(frechet(*pools), rel=1e-3)
    assert set(found["scores"]) == {f"{name}_inception_random" for name in ("fd", "sfd", "is", "precision", "recall")}
    assert found["images"] == found["reference_images"] == 4 and "full rank" in found["notes"][0]
    logits = both[0].pool @ inside.fc.weight.T        # without the bias
    torch.testing.assert_close(network.probabilities(both[0].pool), logits.softmax(1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_array(tmp_path, save, channels):
    images = pictures(11, channels=channels)
    save(tmp_path / "x.npz", arr_0=images, arr_1=np.arange(11))
    archive = adm_suite.Archive(tmp_path / "x.npz")
    assert (len(archive), archive.shape, archive.names) == (11, (11, 5, 6, channels), ["arr_0", "arr_1"])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        whole = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
    for size in (1, 4, 11, 64):
        parts = list(archive.batches(size))
        assert torch.equal(torch.cat(parts), whole) and {part.dtype for part in parts} == {torch.uint8}
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)


def test_an_archive_is_never_in_memory_as_a_whole(tmp_path):
    path = saved(tmp_path / "x.npz", arr_0=pictures(400, height=64, width=64))       # 4.9 MB
    tracemalloc.start()
    total = sum(int(part.sum()) for part in adm_suite.Archive(path).batches(8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == np.load(path, allow_pickle=False)["arr_0"].sum(dtype=np.int64) and peak < 1e6


def test_statistics_in_the_reference_count_and_images_only_where_there_are_none(tmp_path):
    real, fake = pictures(30, 1), pictures(20, 2)
    samples = saved(tmp_path / "samples.npz", arr_0=fake)
    images = saved(tmp_path / "images.npz", arr_0=real)
    pool, spatial = (part.double().numpy() for part in Plain()(torch.from_numpy(real).permute(0, 3, 1, 2)))
    stats = {"mu": pool.mean(0), "sigma": np.cov(pool, rowvar=False)}
    stats_s = {"mu_s": spatial.mean(0), "sigma_s": np.cov(spatial, rowvar=False)}
    by_images = of(images, samples, batch_size=7)
    assert list(by_images["scores"]) == ["fid", "sfid", "is_inception", "precision_inception", "recall_inception"]
    assert (by_images["images"], by_images["reference_images"]) == (20, 30)
    mine = Plain()(torch.from_numpy(fake).permute(0, 3, 1, 2))
    assert by_images["scores"]["fid"] == pytest.approx(frechet(mine[0], pool), rel=1e-9)
    assert by_images["scores"]["sfid"] == pytest.approx(frechet(mine[1], spatial), rel=1e-9)

    alone = of(saved(tmp_path / "stats.npz", **stats, **stats_s), samples)
    for name in ("fid", "sfid", "is_inception"):
        assert alone["scores"][name] == pytest.approx(by_images["scores"][name], rel=1e-9)
    assert len(alone["scores"]) == 3 and "no precision, no recall" in alone["notes"][0] and alone["reference_images"] == 0

    shifted = {**stats, "mu": stats["mu"] + 2}      # statistics of other images than arr_0, as published references have
    both = of(saved(tmp_path / "both.npz", arr_0=real, **shifted), samples)["scores"]
    mean = mine[0].double().numpy().mean(0)
    change = ((mean - shifted["mu"]) ** 2).sum() - ((mean - stats["mu"]) ** 2).sum()
    assert both["fid"] == pytest.approx(by_images["scores"]["fid"] + change, rel=1e-9)
    assert both["sfid"] == by_images["scores"]["sfid"]
    assert both["precision_inception"] == by_images["scores"]["precision_inception"]

    pool_only = of(saved(tmp_path / "pool.npz", **stats), samples)
    assert list(pool_only["scores"]) == ["fid", "is_inception"]
    assert "neither mu_s, sigma_s nor arr_0" in pool_only["notes"][0]
    back = load_stats(tmp_path / "stats.npz", dims=7, names=("mu_s", "sigma_s"))
    np.testing.assert_array_equal(back.covariance, stats_s["sigma_s"])


def test_precision_and_recall_are_the_suites(tmp_path):
    """Radii: the fourth smallest of all distances, the image's own 0 among them; a ball holds its edge."""
    real, fake = pictures(40, 3) // 4, pictures(25, 4) // 3
    x, y = (images.transpose(0, 3, 1, 2).reshape(len(images), -1)[:, :4].astype(np.float64) for images in (real, fake))

    def squared(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    real_radii, fake_radii = (np.partition(squared(z, z), 3, axis=1)[:, 3] for z in (x, y))
    across = squared(x, y)
    found = of(saved(tmp_path / "r.npz", arr_0=real), saved(tmp_path / "s.npz", arr_0=fake))["scores"]
    assert found["precision_inception"] == (across <= real_radii[:, None]).any(0).mean()
    assert found["recall_inception"] == (across <= fake_radii[None]).any(1).mean()
    assert 0 < found["precision_inception"] < 1 and 0 < found["recall_inception"] < 1


def test_inception_score_is_the_mean_over_parts_in_the_order_given(tmp_path, monkeypatch):
    class Sure(Plain):
        def probabilities(self, features):
            return F.one_hot(features[:, 0].long(), 8).double()

    classes = [0, 1, 2, 0, 1, 2, 5, 5, 5, 5, 5, 5, 3, 4]
    images = np.broadcast_to(np.array(classes, np.uint8)[:, None, None, None], (14, 3, 3, 3)).copy()
    images[:, 1:, :, 1:] = pictures(14, 5, 2, 3, 2)
    samples, reference = saved(tmp_path / "s.npz", arr_0=images), saved(tmp_path / "r.npz", arr_0=pictures(9))
    shares = np.array([2, 2, 2, 1, 1, 6]) / 14
    whole = np.exp(-(shares * np.log(shares)).sum())
    assert of(reference, samples, Sure())["scores"]["is_inception"] == pytest.approx(whole)     # fewer than 5000: one part
    monkeypatch.setattr(adm_suite, "PART", 6)
    assert of(reference, samples, Sure())["scores"]["is_inception"] == pytest.approx((3 + 1 + 2) / 3)


def archive_of(path, member, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, content)
    return path


@pytest.mark.parametrize("arrays, message", [
    ({"arr_0": pictures(5).astype(np.float32)}, 'bad.npz, "arr_0": it is float32; images are uint8'),
    ({"arr_0": pictures(5).transpose(0, 3, 1, 2)}, r'bad.npz, "arr_0": it has shape \(5, 3, 5, 6\); images are \(N, H, W, C\)'),
    ({"arr_0": pictures(5)[..., 0]}, r"shape \(5, 5, 6\)"),
    ({"arr_0": pictures(5, channels=4)}, "1 or 3 channels"),
    ({"arr_0": pictures(3)}, "it holds 3 images; 3 neighbours of each need at least 4"),
    ({"arr_0": np.asfortranarray(pictures(5))}, "Fortran order"),
    ({"arr_0": np.array([{}], dtype=object)}, "it is object"),
    ({"images": pictures(5), "labels": np.arange(5)}, 'bad.npz lacks "arr_0"; it holds images, labels'),
])
def test_bad_samples_name_file_and_array(tmp_path, arrays, message):
    bad, good = saved(tmp_path / "bad.npz", **arrays), saved(tmp_path / "good.npz", arr_0=pictures(5))
    with pytest.raises(ValueError, match=message):
        adm_suite.open_archives(good, bad)


def test_torn_and_false_files_are_refused(tmp_path):
    good = saved(tmp_path / "good.npz", arr_0=pictures(5))
    whole = good.read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:300])
    (tmp_path / "text.npz").write_text("mu sigma")
    np.save(tmp_path / "x.npy", pictures(5))
    content = (tmp_path / "x.npy").read_bytes()
    archive_of(tmp_path / "short.npz", "arr_0.npy", content[:-90])
    archive_of(tmp_path / "noise.npz", "arr_0.npy", b"0123456789")
    archive_of(tmp_path / "v3.npz", "arr_0.npy", content[:6] + b"\x03" + content[7:])
    flipped = bytearray(whole)
    flipped[whole.index(pictures(5).tobytes()) + 7] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name, message in (("torn", "not a readable .npz"), ("text", "not a readable .npz"), ("noise", '"arr_0": the magic'),
                          ("short", r"it has 360 bytes; shape \(5, 5, 6, 3\) needs 450"), ("v3", r"its format is \(3, 0\)"),
                          ("flipped", '"arr_0": Bad CRC-32')):
        with pytest.raises(ValueError, match=f"{name}.npz, .*{message}"):
            list(adm_suite.Archive(tmp_path / f"{name}.npz").batches(2))
    with pytest.raises(FileNotFoundError, match="no archive at .*absent.npz"):
        adm_suite.open_archives(good, tmp_path / "absent.npz")


def test_bad_references_name_file_and_array(tmp_path):
    samples, eye = saved(tmp_path / "s.npz", arr_0=pictures(9)), np.eye(4)
    with pytest.raises(ValueError, match='only.npz holds mu_s, sigma_s; a reference holds "arr_0"'):
        adm_suite.open_archives(saved(tmp_path / "only.npz", mu_s=np.zeros(4), sigma_s=eye), samples)
    with pytest.raises(ValueError, match="half.npz holds mu; a reference"):
        adm_suite.open_archives(saved(tmp_path / "half.npz", mu=np.zeros(4)), samples)
    with pytest.raises(ValueError, match=r"shape.npz: mean has shape \(4,\) and covariance \(3, 4\)"):
        adm_suite.open_archives(saved(tmp_path / "shape.npz", mu=np.zeros(4), sigma=eye[:3]), samples)
    spatial = {"mu_s": np.zeros(7), "sigma_s": np.full((7, 7), np.nan)}
    with pytest.raises(ValueError, match="nan.npz, mu_s and sigma_s: mean or covariance holds values that are not finite"):
        adm_suite.open_archives(saved(tmp_path / "nan.npz", mu=np.zeros(4), sigma=eye, **spatial), samples)
    with pytest.raises(ValueError, match="is not a readable .npz of plain arrays"):
        adm_suite.open_archives(saved(tmp_path / "object.npz", mu=np.array([{}]), sigma=eye), samples)
    other = adm_suite.open_archives(saved(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5)), samples)
    with pytest.raises(ValueError, match="other.npz: mu, sigma are of 5 dimensions; inception has 4 there"):
        adm_suite.scores(other, Plain())


def test_missing_weights_say_which_file_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    with pytest.raises(FileNotFoundError, match=networks.INCEPTION_FILE):
        adm_suite.Network()


def test_script(script, inside, tmp_path):
    reference = saved(tmp_path / "reference.npz", arr_0=pictures(6, 1))
    samples = saved(tmp_path / "samples.npz", arr_0=pictures(5, 2, channels=1), arr_1=np.arange(5))
    done = script("scripts/adm_suite.py", f"--reference={reference}", f"--samples={samples}", "--weights=random",
                  f"--output={tmp_path}/new/scores.json", "--device=cpu")
    written = json.loads((tmp_path / "new/scores.json").read_text())
    assert set(written["scores"]) == {f"{name}_inception_random" for name in ("fd", "sfd", "is", "precision", "recall")}
    assert (written["images"], written["reference_images"], written["features"]) == (5, 6, "inception_random")
    assert "5 images against 6 of" in done.stdout and "FID" not in done.stdout
    for name, value in written["scores"].items():
        assert np.isfinite(value) and name in done.stdout
    assert "note: 5 generated images" in done.stdout
    failed = inside("scripts/adm_suite.py", f"--reference={reference}", f"--samples={tmp_path}/none.npz", fails=True)
    assert failed.stderr.strip().splitlines()[-1] == f"error: no archive at {tmp_path}/none.npz: a .npz is expected there"
