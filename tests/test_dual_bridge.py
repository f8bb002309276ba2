"""The dual bridge: exact transport between Gaussians, network calls counted, files, resumption, maps, page, bad input."""

import contextlib
import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

import sample_dual_bridge
from libs import backbones, codecs, data, diffusion, engine, evaluation, metrics, pipeline, report
from libs.engine import checkpoint
from libs.evaluation import bridge as room
from tests.test_report import EVIL, Page

SIDE = 16
GRADIENT = dict(measure="", scale=0.0, classifier="", on="x_t", profile="constant", first=1.0, last=0.0, clip_norm=0.0,
                reclip=False, legacy_steps=0)
SAMPLE = dict(algorithm="ddim", sample_steps=4, spacing="respaced", eta=0.0, n_samples=4, mini_batch_size=4, guidance=1.0,
              gradient=GRADIENT, ema_rate=0.0, labels="data", path="", npz="")


class Exact(torch.nn.Module):
    """The exact eps of data N(mean of the class, SPREAD^2), independent pixels, on the linear schedule; counts its calls."""

    takes, SPREAD, MEANS = ("label",), 0.25, (-0.03, 0.03)

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.schedule, self.calls, self.seen = diffusion.schedule(name="linear"), 0, []

    def at(self, x, t):
        self.calls += 1
        self.seen.append(len(x))
        t = (t[0].item() + 1) / 1000
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def forward(self, x, t, label):
        alpha, sigma = self.at(x, t)
        means = torch.tensor((*self.MEANS, 0.0))[label].view(-1, 1, 1, 1)
        return sigma * (x - alpha * means) / (alpha ** 2 * self.SPREAD ** 2 + sigma ** 2)


class Bayes(Exact):
    """The exact p(class | x_t) of the same data."""

    def forward(self, x, t):
        alpha, sigma = self.at(x, t)
        off = [(x - alpha * mean).square().flatten(1).sum(1) for mean in self.MEANS]
        return -torch.stack(off, 1) / (2 * (alpha ** 2 * self.SPREAD ** 2 + sigma ** 2))


class Crowded(torch.nn.Module):
    """A network whose answers hang on the whole batch, as rounding does, but visibly."""

    takes = ("label",)

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, **cond):
        return self.net(x, t, **cond) + x.mean()


class Share:
    """As much of a run as carrying needs: process `rank` of `world`, played in turn."""

    def __init__(self, rank=0, world=1):
        self.rank, self.world, self.accelerator = rank, world, self

    def autocast(self):
        return contextlib.nullcontext()

    def gather_rows(self, rows):
        return rows


def a_bridge(*, scale=0.0, steps="ddim50", to_noise=True, measure="entropy", judged=True, wrap=lambda net: net):
    """A bridge of the exact network to itself, with the exact classifier."""
    net, schedule = wrap(Exact()), diffusion.schedule(name="linear")
    guide = wrap(Bayes()) if judged else None
    classifier = guide and pipeline.NoisyClassifier(guide, schedule, classes=["low", "high"], shape=(3, SIDE, SIDE))
    config = ConfigDict({"nnet": {"image_size": SIDE, "in_channels": 3}, "denoiser": {"clip": True},
                         "sample": {**SAMPLE, "sample_steps": steps,
                                    "gradient": {**GRADIENT, "measure": measure if scale else "", "scale": scale}}})
    sampler = pipeline.Pipeline(net, config, codec=codecs.get(name="pixels"), schedule=schedule, null={"label": torch.tensor(2)},
                                classifier=classifier)
    side = evaluation.Trained(sampler, ["low", "high"], None, None, None, 1, "nowhere")
    return room.Bridge(side, side, to_noise=to_noise, classifier=classifier), net, classifier and classifier.net


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """7 images of those Gaussians in class folders, 4 low and 3 high."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, mean, n in (("low", -0.03, 4), ("high", 0.03, 3)):
        (folder / name).mkdir()
        for i in range(n):
            x = mean + Exact.SPREAD * rng.standard_normal((SIDE, SIDE, 3))
            Image.fromarray(((x + 1) * 127.5).round().clip(0, 255).astype(np.uint8)).save(folder / name / f"{name}{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = engine.Run(tmp_path_factory.mktemp("run"))
    yield run
    run.finish()


def open_(path, **options):
    return data.get("folder", path=path, resolution=SIDE, **options)


def carry(run, bridge, images, folder, maps="", *, batch_size=4, prefix="p", **own):
    dataset = open_(images)
    jobs = room.plan(dataset, room.routes(maps, images=dataset.classes, encoder=bridge.sources, decoder=bridge.targets), prefix)
    return dataset, jobs, room.carry(run, bridge, dataset, jobs, folder, batch_size=batch_size, **own)


def pixels(folder, name):
    return np.asarray(Image.open(folder / name)).astype(float)


def test_the_bridge_is_the_exact_transport_between_two_gaussians(run, images, tmp_path):
    """Between Gaussians of equal spread the probability-flow ODE shifts by the difference of the means, and nothing else."""
    bridge, *_ = a_bridge(steps="ddim250")
    dataset, jobs, made = carry(run, bridge, images, tmp_path, "all:high,low:low", batch_size=3)
    assert made == len(jobs) == 4 * 2 + 3, "a source with two targets gives two results"
    for job in jobs:
        shift = 127.5 * 0.06 * (job.target == "high" and job.source == "low")
        off = pixels(tmp_path, job.name) - pixels(images, job.file) - shift
        assert abs(off.mean()) < 0.5 and np.abs(off).mean() < 1.5, job  # the steps alone cost 1.1 (MSE 1.3e-4, as published)
    rows = {row["file_name"]: row for row in room.read_rows(tmp_path, jobs)}
    for row in rows.values():
        assert abs(float(row["latent_mean"])) < 0.15 and abs(float(row["latent_std"]) - 1) < 0.1
        assert abs(float(row["latent_correlation"])) < 0.15, "the latent of white pixels is white"
    moved = rows["high/p_low0.png"]
    assert float(moved["before_p_target"]) < 0.3 and float(moved["after_p_target"]) > 0.7
    assert rows["low/p_low0.png"]["latent_mean"] == moved["latent_mean"], "one latent for both targets"


def test_entropy_guidance_raises_the_entropy_over_unguided_decoding(run, images, tmp_path):
    plain, guided = tmp_path / "plain", tmp_path / "guided"
    for folder, scale in ((plain, 0.0), (guided, 5.0)):
        bridge, *_ = a_bridge(scale=scale)
        dataset, jobs, _ = carry(run, bridge, images, folder, prefix=f"entropy{scale:g}")
        (folder / "settings.json").write_text(json.dumps({"scale": scale}))
        rows = room.read_rows(folder, jobs)
        room.write_table(folder, rows)
    beside = room.unguided(plain, {"scale": 5.0})
    judged = room.judge(run, bridge, dataset, rows, guided, beside=beside, batch_size=4)
    scores = room.summary(rows, judged)
    assert scores["entropy_rise"]["low"] > 0.1 and scores["entropy_rise"]["n"] == 7
    # The unguided results are judged anew; that is what their own table says.
    with open(plain / "metadata.csv", newline="") as stream:
        assert scores["unguided_entropy"]["value"] == pytest.approx(
            np.mean([float(row["after_entropy"]) for row in csv.DictReader(stream)]), abs=1e-4)
    assert scores["entropy_rise"]["value"] == pytest.approx(
        scores["entropy_after"]["value"] - scores["unguided_entropy"]["value"], abs=1e-4)
    assert scores["entropy_after"]["value"] <= math.log(2) and scores["change"]["value"] > scores["unguided_change"]["value"]
    with pytest.raises(ValueError, match="was guided by .* 5: compare with a run of --config.sample.gradient.scale=0"):
        room.unguided(guided, {})
    with pytest.raises(ValueError, match=r"differs in more than the classifier's guidance: network=None \(now 'x'\)"):
        room.unguided(plain, {"network": "x", "scale": 5.0})


@pytest.mark.parametrize("to_noise, calls", [(True, 50 + 50), (False, 49 + 50)])
def test_network_calls_are_those_of_the_steps_and_scale_0_asks_no_classifier(to_noise, calls):
    x = torch.zeros(3, 3, SIDE, SIDE)
    bridge, net, classifier = a_bridge(to_noise=to_noise)
    bridge.decode(bridge.encode(x, ["low"] * 3), ["high"] * 3)
    assert (net.calls, classifier.calls) == (calls, 0)
    bridge, net, classifier = a_bridge(scale=1.0, to_noise=to_noise)
    bridge.decode(bridge.encode(x, ["low"] * 3), ["high"] * 3)
    assert (net.calls, classifier.calls) == (calls, 50), "encoding is never guided"


def test_each_image_is_judged_twice_and_without_a_classifier_never(run, images, tmp_path):
    bridge, net, classifier = a_bridge(steps=4)
    carry(run, bridge, images, tmp_path / "judged")
    assert net.calls == 2 * (4 + 4) and sum(classifier.seen) == 2 * 7, "two batches of the network, two beliefs of each image"
    bridge, *_ = a_bridge(steps=4, judged=False)
    _, jobs, _ = carry(run, bridge, images, tmp_path / "plain")
    assert not any("before_entropy" in row for row in room.read_rows(tmp_path / "plain", jobs))


def test_a_stopped_command_goes_on_and_computes_nothing_twice(run, images, tmp_path, monkeypatch):
    bridge, net, _ = a_bridge(steps=4)
    decode, left = bridge.decode, [1]

    def until_killed(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return decode(*arguments)

    monkeypatch.setattr(bridge, "decode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        carry(run, bridge, images, tmp_path)
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(whole) == 4
    monkeypatch.setattr(bridge, "decode", decode)
    net.seen.clear()
    _, jobs, made = carry(run, bridge, images, tmp_path)
    assert made == 3 and net.seen == [3] * 8
    assert {path: path.stat().st_mtime_ns for path in whole} == whole and len(room.read_rows(tmp_path, jobs)) == 7

    # What is damaged, gone, or was made of other pixels is made again.
    (tmp_path / jobs[0].name).write_bytes((tmp_path / jobs[0].name).read_bytes()[:200])
    (tmp_path / jobs[1].name).unlink()
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    Image.new("RGB", (SIDE, SIDE), (140, 120, 110)).save(changed / jobs[2].file)
    net.seen.clear()
    _, _, made = carry(run, bridge, changed, tmp_path)
    assert made == 3 and len(room.read_rows(tmp_path, jobs)) == 7
    assert net.seen == [4] * 8, "the batch of these three is computed whole, the other one is not asked about"


def test_in_float32_the_batch_changes_a_grey_level_at_most(run, images, tmp_path):
    bridge, *_ = a_bridge(scale=2.0, steps=4)
    for batch_size in (1, 5):
        _, jobs, _ = carry(run, bridge, images, tmp_path / str(batch_size), batch_size=batch_size)
    assert max(np.abs(pixels(tmp_path / "1", job.name) - pixels(tmp_path / "5", job.name)).max() for job in jobs) <= 1


def test_batches_are_the_same_for_any_number_of_processes_and_after_a_loss(images, tmp_path):
    """With a network whose results hang on the batch every byte tells whether it was the same one."""
    bridge, *_ = a_bridge(scale=2.0, steps=4, wrap=Crowded)

    def made(name, *shares, batch_size=2):
        jobs = [carry(share, bridge, images, tmp_path / name, "all:low,all:high", batch_size=batch_size)[1] for share in shares][0]
        return jobs, {job.name: (tmp_path / name / job.name).read_bytes() for job in jobs}

    jobs, whole = made("one", Share())
    assert made("two", Share(0, 2), Share(1, 2))[1] == made("three", *(Share(rank, 3) for rank in range(3)))[1] == whole
    other = made("other", Share(), batch_size=3)[1]
    assert sum(other[name] != whole[name] for name in whole) > 7, "or this test would see nothing"
    for job in jobs[2::4]:  # one of each batch
        (tmp_path / "one" / job.name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.png")}
    assert len(kept) == 14 - 3 and made("one", Share())[1] == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    rows, beside = room.read_rows(tmp_path / "one", jobs), {
        (job.file, job.source, job.target): tmp_path / "other" / job.name for job in jobs}
    found = [room.judge(share, bridge, open_(images), rows, tmp_path / "one", beside=beside, batch_size=4)["unguided_entropy"]
             for share in (Share(), Share(0, 2), Share(1, 2))]
    assert torch.equal(found[0][[0, 1, 2, 3, 8, 9, 10, 11]], found[1]) and torch.equal(found[0][[4, 5, 6, 7, 12, 13]], found[2])


def test_a_folder_keeps_to_its_settings(tmp_path):
    room.claim(tmp_path / "out", {"scale": 0.5, "network": "abc"})
    room.claim(tmp_path / "out", {"scale": 0.5, "network": "abc"})
    with pytest.raises(ValueError, match=r"was made with scale=0.5 \(now 5.0\); choose another --output_path"):
        room.claim(tmp_path / "out", {"scale": 5.0, "network": "abc"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    with pytest.raises(ValueError, match="holds files already that are not of this script"):
        room.claim(tmp_path / "other", {})


def route(maps="", images=("a", "b"), encoder=("a", "b"), decoder=("a", "b"), **own):
    return room.routes(maps, images=list(images), encoder=list(encoder), decoder=list(decoder), **own)


def test_maps_say_where_classes_go():
    assert route() == {"a": [("a", "a")], "b": [("b", "b")]}, "MGDM: every class onto itself"
    assert route("a:b, a:a") == {"a": [("a", "b"), ("a", "a")]}, "several targets; what is not named is left out"
    assert route("all:b") == route("*:b") == {"a": [("a", "b")], "b": [("b", "b")]}
    assert route("all:b", images=("a", "all"), encoder=("a", "all")) == {"all": [("all", "b")]}, "a class of that name comes first"
    assert route("a:c", decoder=("c", "d")) == {"a": [("a", "c")]}, "DDIB: the second network's classes"
    assert route(encoder=(), decoder=()) == {"a": [("", "")], "b": [("", "")]}, "networks without classes keep the label"
    assert route(images=(), encoder=(), decoder=()) == {"": [("", "")]}
    assert route("*:b", images=()) == {"": [("", "b")]}, "unlabelled images, encoded as no class"
    assert route("a:b,a:a", images=()) == {"": [("a", "b"), ("a", "a")]}, "all of them are a"


@pytest.mark.parametrize("options, message", [
    (dict(maps="nevsu:melanoma", images=("nevus",)), r"nevsu:melanoma: no class 'nevsu' among \['nevus'\]; did you mean 'nevus'"),
    (dict(maps="a:B"), r"a:B: the network makes no class 'B', only \['a', 'b'\]; did you mean 'b'"),
    (dict(maps="a"), "'a' is no pair source:target"),
    (dict(images=("a", "bb")), "class 'bb' that the network does not know: .*did you mean 'b'"),
    (dict(decoder=("a",)), "makes no class 'b'.*say by --maps where it goes"),
    (dict(maps="a:a", decoder=()), "takes no label"),
    (dict(images=()), "the images have no labels"),
    (dict(images=(), decoder=()), "put them into a folder of the name of their class"),
    (dict(maps="a:a,b:b", images=()), "several sources, and the images have no labels"),
    (dict(maps="*:b", images=(), without_class=False), "not trained on images of no class"),
])
def test_maps_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        route(**options)


def test_names_follow_sources_and_never_collide(tmp_path):
    for name in ("a/1.png", "b/1.png", "a/2.png", "a/x.png", "a/x.jpg", "b/a_1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / name)
    dataset = open_(tmp_path)
    jobs = {job.file: job.name for job in room.plan(dataset, {"a": [("a", "b")], "b": [("b", "b")]}, "entropy0.5")}
    assert jobs["a/2.png"] == "b/entropy0.5_2.png" and jobs["b/1.png"] == "b/entropy0.5_b_1.png"
    assert len({name.lower() for name in jobs.values()}) == 6 and all(name.startswith("b/entropy0.5_") for name in jobs.values())
    part = {job.file: job.name for job in room.plan(dataset, {"a": [("a", "b")]}, "entropy0.5")}
    assert part == {file: name for file, name in jobs.items() if file.startswith("a/")}, "whatever else is asked for"


def test_fewer_images_are_a_part_of_more(images):
    dataset = open_(images)
    jobs = room.plan(dataset, {"low": [("low", "low"), ("low", "high")], "high": [("high", "high")]}, "p")
    few, more = room.some(jobs, 2), room.some(jobs, 5)
    assert len({job.index for job in few}) == 2 and set(few) < set(more) < set(jobs) == set(room.some(jobs, 0))
    with pytest.raises(ValueError, match="n_samples=-1"):
        room.some(jobs, -1)


@pytest.mark.parametrize("measure, scale, name, prefix", [
    ("Entropy", 5.0, "entropy", "entropy5"), ("LeastConf", 0.5, "least_confidence", "least_confidence0.5"),
    ("classifier", 10.0, "log_probability", "log_probability10"), ("Margin", 0.0, "", "unguided"), ("", 0.0, "", "unguided")])
def test_measures_by_their_published_names(measure, scale, name, prefix):
    sample = ConfigDict({"gradient": {"measure": measure, "scale": scale}})
    assert room.settle(sample) == prefix and sample.gradient.measure == name


def test_an_unknown_measure_is_named_at_any_scale():
    for scale in (0.0, 2.0):
        with pytest.raises(ValueError, match="'entrpy'; known: .*Did you mean 'entropy'"):
            room.settle(ConfigDict({"gradient": {"measure": "entrpy", "scale": scale}}))


@pytest.mark.parametrize("field, asked, kept, prefix", [
    ({"guidance": 1.5}, "", {"guidance": 1.0}, "unguided"), ({"scale": 0.4}, "", {"scale": 0.0}, "unguided"),
    ({}, "", {"guidance": 1.0}, "unguided"), ({"guidance": 1.0}, "1.5", {"guidance": 1.5}, "cfg1.5"),
    ({"scale": 0.4}, "3", {"scale": 2.0}, "cfg3"), ({"guidance": 1.5}, "0", {"guidance": 0.0}, "cfg0")])
def test_guidance_is_what_was_asked_here_and_not_that_of_the_run(field, asked, kept, prefix):
    sample = ConfigDict(field).lock()
    assert room.settle(sample, asked) == prefix and sample.to_dict() == kept
    sample = ConfigDict(field | {"gradient": {"measure": "Entropy", "scale": 5.0}})
    assert room.settle(sample, asked) == ("entropy5" if prefix == "unguided" else f"{prefix}_entropy5")


@pytest.mark.parametrize("asked", ["strong", "-1", "nan", "inf"])
def test_guidance_that_is_no_scale(asked):
    with pytest.raises(ValueError, match=f"--guidance={asked}: give the scale"):
        room.settle(ConfigDict({"guidance": 1.0}), asked)


def test_networks_that_do_not_fit():
    a, b = a_bridge()[0].encoder, a_bridge()[0].encoder
    b.sampler.shape = (3, 8, 8)
    with pytest.raises(ValueError, match=r"works on \(3, 16, 16\) .* on \(3, 8, 8\)"):
        room.Bridge(a, b)
    b.sampler.shape, b.sampler.schedule = a.sampler.shape, diffusion.schedule(name="linear", steps=500)
    with pytest.raises(ValueError, match="has 1000 steps, that of nowhere 500 steps"):
        room.Bridge(a, b)
    b.sampler.null["text"] = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="takes text; the bridge knows classes only"):
        room.Bridge(a, b)


def test_remarks_on_latents():
    assert "white noise" in report.bridge.remark(0.01, 1.005, -0.01, 3072)
    said = report.bridge.remark(0.2, 0.9, 0.3, 3072)
    assert "above 0 by 0.2" in said and "10.0% narrower" in said and "correlate by 0.3" in said
    smooth = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert room.neighbours_correlate(smooth) > 0.9 and abs(room.neighbours_correlate(noise)) < 0.03


def test_the_page_shows_all_and_escapes_names(run, tmp_path):
    """Of a folder with a hostile class name, compared with an unguided run, seen by an independent classifier."""
    rng = np.random.default_rng(0)
    for name in ("low", "high"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            image.save(tmp_path / f"images/{name}/{name}{i} & <b>.png")
    dataset = open_(tmp_path / "images")
    every = torch.stack([pipeline.to_uint8(dataset[i]["image"]) for i in range(4)]).repeat(8, 1, 1, 1)
    metrics.train_classifier(every, dataset.labels.repeat(8), classes=[*dataset.classes], epochs=1).save(tmp_path / "network")
    recogniser = metrics.extractor(f"classifier:{tmp_path / 'network'}")
    for folder, scale in ((tmp_path / "plain", 0.0), (tmp_path / "guided", 5.0)):
        bridge, *_ = a_bridge(scale=scale, steps=4)
        jobs = room.plan(dataset, route(images=dataset.classes, encoder=bridge.sources, decoder=bridge.targets), f"p{scale:g}")
        room.claim(folder, {"scale": scale})
        room.carry(run, bridge, dataset, jobs, folder, batch_size=4, shown=jobs[:3])
        room.write_table(folder, rows := room.read_rows(folder, jobs))
    beside = room.unguided(tmp_path / "plain", {"scale": 5.0})
    room.check_judges(jobs, beside, recogniser)
    with pytest.raises(ValueError, match=r"--recogniser tells \['high', 'low'\] apart, not \['other'\]"):
        room.check_judges([jobs[0]._replace(target="other")], None, recogniser)
    with pytest.raises(ValueError, match="has none of these images .* from 'high' to 'other'"):
        room.check_judges([jobs[0]._replace(target="other")], beside, None)
    judged = room.judge(run, bridge, dataset, rows, folder, beside=beside, recogniser=recogniser)
    room.finish(bridge, dataset, rows, judged, folder, shown=4, beside=beside,
                settings={"measure": "entropy", "scale": 5.0, "nnet": EVIL})
    text = report.write_bridge(folder, title=EVIL).read_text(encoding="utf-8")
    page = Page(text)
    assert EVIL in page.text and "<script" not in text and "low1 & <b>.png" in page.text
    assert "default-src 'none'" in text and all(load.startswith("data:") for load in page.loads)
    assert len(page.images) == 4 * 5 - 1, "source, latent, unguided, result, difference; the fourth latent was not kept"
    for expected in ("4 images encoded to noise", "guided by entropy at scale 5", "over unguided decoding", "Recognised",
                     "amplified", "Entropy above unguided", "picture not kept", "knowing nothing is 0.693", "neighbours correlate"):
        assert expected in page.text, expected
    assert text.count('class="after"') == 4 * 2, "two bars of the belief afterwards for each image"


# Through the command line, with networks of random weights.

ADM = dict(image_size=SIDE, in_channels=3, model_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(2,),
           num_head_channels=32, out_channels=0, use_scale_shift_norm=True, resblock_updown=True)


def make_run(folder, classes, *, seed=0, **nnet):
    """A run folder as a training leaves it."""
    nnet = {**ADM, **(nnet or {"name": "adm_unet", "num_classes": len(classes) or -1})}
    config = {"seed": 1, "train": dict(mode="cond" if classes else "uncond", p_uncond=0.1 * bool(classes), mixed_precision=""),
              "nnet": nnet, "schedule": dict(name="linear"), "denoiser": dict(predicts="v", learned_var=False, clip=True),
              "codec": dict(name="pixels"), "dataset": dict(name="folder", path="", resolution=SIDE, channels=3), "sample": SAMPLE}
    net = backbones.get(**{**nnet, "out_channels": 3 if nnet["name"] == "adm_unet" else len(classes)})
    draw = torch.Generator().manual_seed(seed)
    weights = {name: value + 0.05 * torch.randn(value.shape, generator=draw) for name, value in net.state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "classes.json").write_text(json.dumps(classes))
    checkpoint.write(folder / "ckpts", 1, {"nnet": weights, "nnet_ema": weights},
                     {"step": 1, "best": {}, "optimizer": {}, "extra": {}, "scaler": {}})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of a network and of a classifier that numbers the classes the other way round."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "network", ["low", "high"])
    make_run(folder / "classifier", ["high", "low"], name="adm_classifier", pool="attention")
    return folder


@pytest.fixture(scope="module")
def command(runs, images):
    """The common options; results go to an --output_path. In bf16."""
    return ("sample_dual_bridge.py", f"--workdir={runs}/network", f"--input_path={images}", "--maps=low:high,low:low,high:high",
            f"--config.sample.gradient.classifier={runs}/classifier", "--config.train.mixed_precision=bf16")


GUIDED = ("--config.sample.gradient.measure=Entropy", "--config.sample.gradient.scale=50")


@pytest.fixture(scope="module")
def guided(script, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guided") / "out"
    done = script(*command, *GUIDED, f"--output_path={folder}")
    assert f"11 images in {folder}, 11 of them made now" in done.stdout
    return folder


def results(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png") if not path.parent.name.startswith("."))


def test_the_output_is_a_data_set(guided, runs):
    dataset = open_(guided)
    assert dataset.classes == ["high", "low"] and torch.bincount(dataset.labels).tolist() == [7, 4]
    assert results(guided) == sorted([f"{target}/entropy50_low{i}.png" for i in range(4) for target in ("high", "low")]
                                     + [f"high/entropy50_high{i}.png" for i in range(3)])
    assert {row["source_file"] for row in dataset.rows} == {*(f"low/low{i}.png" for i in range(4)),
                                                            *(f"high/high{i}.png" for i in range(3))}
    facts = Image.open(guided / "high/entropy50_low0.png").text
    assert (facts["source_file"], facts["source_label"], facts["label"]) == ("low/low0.png", "low", "high")
    assert (facts["measure"], facts["scale"]) == ("entropy", "50.0")
    assert facts["network"] == engine.weights_hash(runs / "network/ckpts/1.ckpt")
    for row in dataset.rows:
        p = float(row["after_p_target"])
        assert float(row["after_entropy"]) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-3)
        assert row["after_class"] == (row["label"] if p > 0.5 else {"low": "high", "high": "low"}[row["label"]])
        assert float(row["after_margin"]) == pytest.approx(abs(2 * p - 1), abs=1e-3)


def test_two_processes_make_the_same_files_in_bf16(script, command, guided, tmp_path):
    script(*command, *GUIDED, f"--output_path={tmp_path}/two", processes=2)
    assert results(tmp_path / "two") == results(guided)
    for name in (*results(guided), "metadata.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (guided / name).read_bytes(), name


def test_continued_and_compared_with_unguided_decoding(inside, command, guided, tmp_path):
    """One file of a batch is gone: it comes again byte for byte, and no other one is touched."""
    inside(*command, f"--output_path={tmp_path}/plain", "--n_samples=5")
    again, gone = tmp_path / "again", "high/entropy50_low1.png"
    shutil.copytree(guided, again)
    (again / gone).unlink(), (again / ".latents" / gone).unlink()
    made = {path: path.stat().st_mtime_ns for path in again.rglob("*.png")}
    done = inside(*command, *GUIDED, f"--output_path={again}", f"--compare_path={tmp_path}/plain")
    assert "11 images" in done.stdout and ", 1 of them made now" in done.stdout and "above the unguided results" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (again / gone).read_bytes() == (guided / gone).read_bytes()
    scores = json.loads((again / "bridge.json").read_text())["scores"]
    n = len(results(tmp_path / "plain"))
    assert scores["entropy_rise"]["n"] == n < 11 and scores["entropy_after"]["n"] == 11
    assert scores["from_unguided"]["value"] > 0, "a classifier of random weights changes something, in no direction"
    page = Page((again / "index.html").read_text())
    assert "unguided decoding" in page.text and "classifier-free" not in page.text and f"{n} pairs" in page.text


def test_from_one_network_to_another(inside, runs, images, tmp_path):
    """DDIB; the first network takes no label and gets unlabelled images, of which there are fewer than a batch."""
    other = make_run(tmp_path / "other", [], seed=1)
    shutil.copytree(images / "low", tmp_path / "loose")
    inside("sample_dual_bridge.py", f"--workdir={other}", f"--target_workdir={runs}/network", f"--input_path={tmp_path}/loose",
           "--maps=*:high", f"--output_path={tmp_path}/out", "--n_samples=3", "--encode_to_noise=0", "--page_images=0",
           "--guidance=2")
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["network"] == engine.weights_hash(other / "ckpts/1.ckpt") and settings["encode_to_noise"] == 0
    assert settings["decoding_network"] == engine.weights_hash(runs / "network/ckpts/1.ckpt") and settings["guidance"] == 2.0
    assert len(results(tmp_path / "out")) == 3 and len(open_(tmp_path / "out")) == 3
    assert all(name.startswith("high/cfg2_low") for name in results(tmp_path / "out"))
    assert "under classifier-free guidance 2" in Page((tmp_path / "out/index.html").read_text()).text


def test_other_samplers_are_refused():
    nothing = dict(workdir="", nnet_path="", target_workdir="", input_path="", output_path="", maps="", n_samples=0,
                   guidance="", encode_to_noise=1, compare_path="", recogniser="", page_images=0)
    for other, message in ((dict(algorithm="ddpm"), "there and back by DDIM"), (dict(eta=0.5), "eta=0.5.*give .* eta 0")):
        with pytest.raises(ValueError, match=message):
            sample_dual_bridge.sample(ConfigDict({"sample": SAMPLE | other}), **nothing)
    with pytest.raises(ValueError, match="encode_to_noise=2: 1 encodes in as many steps as it decodes"):
        sample_dual_bridge.sample(ConfigDict({"sample": SAMPLE}), **(nothing | {"encode_to_noise": 2}))


@pytest.mark.parametrize("options, message", [
    ((*GUIDED, "--config.sample.gradient.classifier="), "guides by a classifier: give the run folder"),
    (("--input_path=", "--config.dataset.path=nowhere"), "give --input_path"),
])
def test_bad_requests(inside, command, tmp_path, options, message):
    done = inside(*command, f"--output_path={tmp_path}/out", *options, fails=True)
    assert message in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
