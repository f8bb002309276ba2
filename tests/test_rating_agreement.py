"""Agreement of raters: textbook values, the libraries' values on resamples, and a sentence where nothing can be said."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import krippendorff
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from libs.data import phantoms
from libs.ratings import Answer, Axis, agreement, building, reliability, scripted
from libs.ratings.store import Store
from tests.ratings_pools import tiny_pool

NAN = np.nan
# Krippendorff (2011, "Computing Krippendorff's alpha-reliability"), example C: four observers, twelve units
OBSERVED = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
                     [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN]])
COUNTS = np.stack([(OBSERVED == level).sum(axis=0) for level in range(1, 6)], axis=1)


def answers(pool, rate, raters=("anna", "bob")):
    """Answers of each rater to each item: rate(rater, item) -> level, {axis: level}, or None for no answer."""
    found = []
    for rater in raters:
        for item in pool.items:
            level = rate(rater, item)
            if level is not None:
                scores = level if isinstance(level, dict) else {axis.name: level for axis in pool.axes}
                found.append(Answer(len(found) + 1, rater, item.item, scores, (), "", 5.0, datetime.now(UTC).isoformat()))
    return found


def number(item):
    """Which of the pool's images this is, alike for an image and its repeat; the first 12 are controls, the last 15 real."""
    return int(item.text.rsplit(" ", 1)[1])


def summarize(pool, *given, **options):
    """A summary that JSON holds, and whose table and verdict can be written."""
    found = agreement.summary(pool, answers(pool, *given), resamples=200, **options)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(sentence in agreement.table(found) for sentence in found["verdict"])
    return found


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """60 images, 12 of them under a wrong prompt, 15 real; 12 shown twice."""
    return tiny_pool(tmp_path_factory.mktemp("pool"), 60, 12, controls=12, real=15)


def level_of(item):
    """1, 2 or 3, alike for an image and its repeat."""
    return 1 + int(item.sha256[:6], 16) % 3


def test_ordinal_alpha_is_the_textbook_s():
    found = reliability.alpha(COUNTS, range(12), resamples=50)
    assert found["value"] == pytest.approx(0.815, abs=5e-4) and found["images"] == 11
    assert reliability.alpha_of(reliability.coincidences(COUNTS[:11].astype(float)).sum(axis=0)) == pytest.approx(found["value"])


def test_kappa_is_the_textbook_s():
    """Two readers, 50 cases: both yes 20, only the first 5, only the second 10, both no 15: kappa is 0.4."""
    first, second = np.repeat([2, 2, 1, 1], (20, 5, 10, 15)), np.repeat([2, 1, 2, 1], (20, 5, 10, 15))
    found = reliability.kappa(first, second, range(50), levels=(1, 2))
    assert found["value"] == pytest.approx(0.4) and found["same"] == 0.7 and found["low"] < 0.4 < found["high"]
    # with quadratic weights: 1 - sum(w o) / sum(w e) by hand, w = (i - j)^2, margins (1, 1, 2) and (1, 2, 1) of 4
    found = reliability.kappa([1, 2, 3, 3], [1, 2, 2, 3], range(4), levels=(1, 2, 3))
    expected = sum((i - j) ** 2 * a * b / 16 for i, a in enumerate((1, 1, 2)) for j, b in enumerate((1, 2, 1)))
    assert found["value"] == pytest.approx(1 - (1 / 4) / expected * 1) and found["low"] is None


def test_resamples_are_what_the_libraries_give_for_images_drawn_again():
    random = np.random.default_rng(0)
    truth = random.integers(1, 4, 40)
    scores = np.stack([np.where(random.random(40) < 0.3, random.integers(1, 4, 40), truth) for _ in range(3)]).astype(float)
    weights = reliability.resampled(range(40), resamples=5, seed=1)
    assert (weights.sum(axis=1) == 40).all()
    cells = np.zeros((40, 3, 3))
    cells[np.arange(40), scores[0].astype(int) - 1, scores[1].astype(int) - 1] = 1
    counts = np.stack([(scores == level).sum(axis=0) for level in (1, 2, 3)], axis=1).astype(float)
    kappas = reliability.kappa_of(np.tensordot(weights, cells, axes=1))
    alphas = reliability.alpha_of(np.tensordot(weights, reliability.coincidences(counts), axes=1))
    ranks = [reliability._ranks(row, weights) for row in (scores[0], scores[1:].mean(axis=0))]
    rhos = reliability._correlation(*ranks, weights)
    partly = np.where(np.arange(40) % 4 == 0, [[1], [NAN], [1]], 1) * scores
    orders = reliability.consistency_of(partly, weights)
    for row, kappa, alpha, rho, order in zip(weights, kappas, alphas, rhos, orders):
        drawn = np.repeat(scores, row, axis=1)
        assert kappa == pytest.approx(cohen_kappa_score(drawn[0].astype(int), drawn[1].astype(int), weights="quadratic"))
        assert alpha == pytest.approx(krippendorff.alpha(reliability_data=drawn, level_of_measurement="ordinal"))
        assert rho == pytest.approx(spearmanr(drawn[0], drawn[1:].mean(axis=0)).statistic)
        assert order == pytest.approx(krippendorff.alpha(reliability_data=np.repeat(partly, row, axis=1),
                                                         level_of_measurement="interval"))
    even = np.ones((1, 40))
    assert reliability.consistency(scores, range(40))["value"] == pytest.approx(krippendorff.alpha(
        reliability_data=scores - reliability.leniency(scores)[:, None], level_of_measurement="interval"))
    upper, lower = scores[0, :15], scores[1, 15:]
    assert reliability.difference(upper, lower)["auroc"]["value"] == pytest.approx(
        roc_auc_score([1] * 15 + [0] * 25, np.concatenate([upper, lower])))
    assert reliability._correlation(*(reliability._ranks(row, even) for row in scores[:2]), even)[0] == pytest.approx(
        spearmanr(*scores[:2]).statistic)


def test_an_interval_of_consistency_holds_the_value_of_resamples():
    """The interval's own formula, not the library's, on a resample that draws each image once."""
    scores = OBSERVED[:, np.tile(np.arange(11), 3)] + np.array([[0], [1], [0], [-1]])
    found = reliability.consistency(scores, range(33), resamples=2000)
    same = reliability.consistency(OBSERVED[:, np.tile(np.arange(11), 3)], range(33), resamples=2000)
    assert found == pytest.approx(same) and found["low"] < found["value"] < found["high"]
    once = reliability.consistency(scores, np.zeros(33), resamples=3)  # one group: every resample is the data
    assert once["low"] is None and once["value"] == pytest.approx(found["value"])


def test_leniency_is_found_although_raters_saw_different_images():
    random = np.random.default_rng(0)
    bias = np.array([0.5, -0.2, -0.3])
    scores = random.normal(size=30) + bias[:, None]
    scores[0, :12], scores[1, 10:20], scores[2, 25:] = NAN, NAN, NAN
    assert reliability.leniency(scores) == pytest.approx(bias)
    assert reliability.consistency(scores, range(30))["value"] == pytest.approx(1)


def test_repeats_are_drawn_with_their_image():
    drawn = reliability.resampled([5, 7, 5, 9], resamples=50)
    assert (drawn[:, 0] == drawn[:, 2]).all() and (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_intervals_of_shares_are_wilson_s_and_raters_needed_spearman_and_brown_s():
    found = reliability.share([True] * 8 + [False] * 2, range(10))
    assert (found["low"], found["high"]) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    three = reliability.share(([True] * 8 + [False] * 2) * 3, [*range(10)] * 3)  # three answers to an image are no three images
    assert (three["low"], three["high"]) == pytest.approx((found["low"], found["high"]))
    assert (three["found"], three["of"], three["images"]) == (24, 30, 10)
    assert reliability.share([], [])["value"] is None
    assert [reliability.raters_for(value) for value in (0.5, 0.8, 1, 0, None)] == [4, 1, 1, None, None]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Means of 12 normal values: plain percentiles would hold the truth in 89 to 90 % of the cases."""
    random = np.random.default_rng(0)
    found = [reliability.mean(random.normal(size=12), range(12), resamples=300, seed=k) for k in range(400)]
    assert 0.92 < np.mean([each["low"] < 0 < each["high"] for each in found]) < 0.98


def test_raters_who_agree(pool):
    found = summarize(pool, lambda rater, item: level_of(item), ("anna", "bob", "carl"))
    assert found["signal"] == {"quality": True, "congruence": True}
    for axis in found["axes"].values():
        assert axis["alpha"]["value"] == axis["consistency"]["value"] == axis["same"] == 1
        assert [pair["value"] for pair in axis["pairs"]] == [1, 1, 1] and sum(axis["shares"].values()) == pytest.approx(1)
    own = found["raters"]["carl"]["axes"]["quality"]
    assert (own["rho"]["value"], own["bias"]["value"], own["self"]["same"], own["self"]["value"]) == (pytest.approx(1), 0, 1, 1)
    assert own["self"]["repeats"] == 12 and found["counts"]["scored_by_two"] == 60
    assert found["verdict"][0] == "The labels carry a signal in quality and congruence."
    assert any("That is reliable" in sentence for sentence in found["verdict"])


def test_raters_who_guess(pool):
    random = np.random.default_rng(3)
    found = summarize(pool, lambda rater, item: int(random.integers(1, 4)), ("anna", "bob"))
    assert found["signal"] == {"quality": False, "congruence": False}
    assert found["verdict"][0] == "Agreement beyond chance is not shown in quality and congruence."
    assert any("may learn noise" in sentence for sentence in found["verdict"])


def test_a_signal_is_not_denied_where_it_is_only_not_shown():
    def signal(value, low, high, images):
        return agreement._signal({"shares": {"1": 0.5, "2": 0.5},
                                  "consistency": {"value": value, "low": low, "high": high, "images": images}})
    assert signal(0.1, -0.1, 0.3, 60) is False and signal(0.5, 0.2, 0.7, 20) is True
    assert signal(0.1, -0.2, 0.4, 20) is None  # few images
    assert signal(0.3, -0.1, 0.7, 60) is None  # wide interval
    assert signal(0.3, None, None, 5) is None


def test_wide_intervals_are_told(pool):
    """Both call nearly all images good, and differ in three of the five others."""
    odd = {20: (1, 3), 21: (3, 1), 22: (1, 1), 23: (1, 1), 24: (1, 3)}
    found = summarize(pool, lambda rater, item: odd.get(number(item), (3, 3))[rater == "bob"] if 15 < number(item) < 52 else None)
    axis = found["axes"]["quality"]["consistency"]
    assert axis["images"] >= 30 and axis["low"] <= 0 < 0.667 <= axis["high"] and found["signal"]["quality"] is None
    assert found["verdict"][0] == "Whether the labels carry a signal in quality and congruence is not known yet."
    assert any("good agreement is not excluded either" in sentence for sentence in found["verdict"])


def test_names_of_any_kind_are_drawn_as_they_are(pool, tmp_path, recwarn):
    found = summarize(pool, lambda rater, item: level_of(item), ("anna $x_$ $\\frac$", "花子", "a $ and a \\$"))
    found["sources"]["$\\model$"] = found["sources"].pop("run")
    agreement.figure(found, tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").stat().st_size > 10_000 and not [each for each in recwarn if "Glyph" in str(each.message)]


def test_raters_are_compared_with_themselves_by_their_first_answers(pool):
    """Anna's answers to repeats are one level off, and at the end she makes them match."""
    def given(off):
        return answers(pool, lambda rater, item: (level_of(item) + off * bool(item.repeat_of)) % 3 + 1, ("anna",))
    first, last = given(1), [replace(answer, number=answer.number + 1000) for answer in given(0)]
    own = {}
    for name, options in {"last": {}, "first": {"history": first + last}}.items():
        found = agreement.summary(pool, last, resamples=100, **options)
        own[name] = found["raters"]["anna"]["axes"]["quality"]["self"]["same"]
        assert ("changes of mind included" in found["method"]) == (name == "last")
        assert found["counts"]["answers"] == len(last)
    assert own == {"last": 1, "first": 0}


def test_a_rater_who_does_not_repeat_himself_is_told(tmp_path):
    pool, random = tiny_pool(tmp_path, 30, 25), np.random.default_rng(0)
    found = summarize(pool, lambda rater, item: int(random.integers(1, 4)), ("anna",))
    assert any(sentence.startswith("anna gave") and "of 25 images shown twice" in sentence for sentence in found["verdict"])
    assert not any("shown twice" in sentence for sentence in summarize(pool, lambda _, item: level_of(item), ("anna",))["verdict"])


def test_a_strict_rater_hides_no_signal_and_is_named(pool):
    """Bob gives one level less than Anna: they never give the same number, and agree in all that matters."""
    found = summarize(pool, lambda rater, item: max(1, level_of(item) % 2 + 2 - (rater == "bob")))
    axis = found["axes"]["quality"]
    assert axis["same"] == 0 and axis["alpha"]["value"] < 0.5 and axis["consistency"]["value"] == pytest.approx(1)
    assert found["signal"]["quality"] and any("do not use the same numbers" in sentence for sentence in found["verdict"])
    assert found["raters"]["bob"]["axes"]["quality"]["bias"]["value"] == -1
    said = [sentence for sentence in found["verdict"] if "Take this out" in sentence]
    assert said == ["anna scores higher than bob: quality by 1.00 levels (+1.00 to +1.00) and congruence by 1.00 levels (+1.00 to "
                    "+1.00). Take this out before scores are averaged."]
    three = summarize(pool, lambda rater, item: max(1, level_of(item) % 2 + 2 - (rater == "bob")), ("anna", "bob", "carl"))
    assert any(sentence.startswith("bob scores lower than the others: quality by 1.00") for sentence in three["verdict"])


def test_agreement_that_rests_on_controls_is_told(pool):
    random = np.random.default_rng(0)
    found = summarize(pool, lambda rater, item: 1 if item.control else int(random.integers(2, 4)))
    assert found["signal"]["quality"] is True
    assert any("rests on the images that were made wrong on purpose" in sentence for sentence in found["verdict"])


def test_controls_and_who_does_not_look(pool):
    repeated = {item.repeat_of for item in pool.items if item.repeat_of}
    shown = sum(bool(item.control) for item in pool.items)
    found = summarize(pool, lambda rater, item: 3 if rater == "bob" else 1 if item.control else 3)
    assert found["raters"]["anna"]["below_good"]["controls"]["found"] == shown and repeated
    assert found["raters"]["bob"]["below_good"]["controls"]["found"] == 0
    assert found["raters"]["anna"]["below_good"]["real"]["found"] == 0
    assert found["controls"]["swapped"]["value"] == 0.5
    said = [sentence for sentence in found["verdict"] if "sees the difference" in sentence]
    assert len(said) == 1 and said[0].startswith(f"bob called 0 of {shown} images bad")


def test_real_images_against_generated_ones(pool):
    found = summarize(pool, lambda rater, item: 3 if item.kind == "real" else 2)
    compared = found["real"]["quality"]
    assert compared["difference"] == {"value": 1, "low": 1, "high": 1, "images": 15} and compared["auroc"]["value"] == 1
    assert any("real images score higher than generated ones" in sentence for sentence in found["verdict"])
    means = {name: of["axes"]["quality"]["value"] for name, of in found["sources"].items()}
    assert means == {"run (real)": 3, "run": 2, "swapped (control)": 2}
    alike = summarize(pool, lambda rater, item: level_of(item))
    assert any("do not clearly differ" in sentence for sentence in alike["verdict"])


@pytest.mark.parametrize("rate, raters, sentence", [
    (lambda rater, item: None, ("anna",), "There are no answers yet."),
    (lambda rater, item: level_of(item), ("anna",), "Only anna has answered so far"),
    (lambda rater, item: 3, ("anna", "bob"), "quality: every score is 3 (as a photograph)."),
    (lambda rater, item: 3, ("anna",), "every score is 3"),
    (lambda rater, item: 3 - (rater == "bob"), ("anna", "bob"), "no rater's scores differ"),
    (lambda rater, item: level_of(item) if (rater == "bob") == (number(item) < 30) else None, ("anna", "bob"),
     "No image has scores of two raters yet"),
    (lambda rater, item: level_of(item) if number(item) < 6 else None, ("anna", "bob"), "too few to tell agreement from chance"),
    (lambda rater, item: level_of(item) if number(item) < 15 else None, ("anna", "bob"), "with 30 or more the interval is worth"),
    (lambda rater, item: 1 if number(item) in (20, 30) else 3, ("anna", "bob"), "97% of the scores are 3, and the others"),
    (lambda rater, item: 1 if number(item) in (20, 25, 30, 35) else 3, ("anna", "bob"), "With so little spread alpha can be low"),
])
def test_what_cannot_be_known_is_a_sentence(pool, tmp_path, rate, raters, sentence):
    found = summarize(pool, rate, raters)
    assert any(sentence in said for said in found["verdict"]), found["verdict"]
    if found["raters"]:
        agreement.figure(found, tmp_path / "agreement.png")
        assert (tmp_path / "agreement.png").stat().st_size > 10_000


def test_one_rater_still_has_repeats_and_controls(pool):
    found = summarize(pool, lambda rater, item: level_of(item), ("anna",))
    own = found["raters"]["anna"]["axes"]["quality"]
    assert own["self"]["value"] == 1 and own["bias"]["value"] is None and found["signal"]["quality"] is None
    assert "is not known yet" in found["verdict"][0] and found["axes"]["quality"]["pairs"] == []


def test_a_change_of_mind_counts_and_answers_to_another_pool_are_refused(pool):
    given = answers(pool, lambda rater, item: level_of(item))
    item = pool.items[0]
    changed = Answer(999, "anna", item.item, {"quality": 1, "congruence": 1}, (), "", 5.0, "")
    found = agreement.summary(pool, [changed, *given], resamples=100)
    assert found["counts"]["answers"] == len(given)
    before = agreement.summary(pool, given, resamples=100)["raters"]["anna"]["axes"]["quality"]["mean"]
    assert found["raters"]["anna"]["axes"]["quality"]["mean"] == pytest.approx(before - (level_of(item) - 1) / len(pool.items))
    with pytest.raises(ValueError, match="the ratings belong to another pool"):
        agreement.summary(pool, [Answer(1, "anna", "elsewhere", {"quality": 1, "congruence": 1}, (), "", 1.0, "")])


def test_the_seed_decides_the_intervals(pool):
    random = np.random.default_rng(0)
    given = answers(pool, lambda rater, item: int(random.integers(1, 4)))
    one, same, other = (agreement.summary(pool, given, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


# -- raters that are programs ------------------------------------------------------------------------------------------------


def test_scripted_raters_err_and_lean_as_they_are_told(tmp_path):
    pool = tiny_pool(tmp_path, 300, 0, controls=60, real=0)
    truth = scripted.truths(pool)
    assert sum(levels == {"quality": 3, "congruence": 1} for levels in truth.values()) == 60

    def scores(name, axis="quality", **options):
        rater = scripted.Scripted(name, **options)
        return np.array([rater.scores(pool, item, truth[item.item], seed=4)[axis] for item in pool.items])
    right = np.array([truth[item.item]["congruence"] for item in pool.items])
    assert (scores("anna", "congruence") == right).all()
    assert (scores("anna", "congruence", noise=0.15) != right).mean() == pytest.approx(0.15, abs=0.06)
    assert scores("bob", bias=-0.5).mean() == pytest.approx(2.5, abs=0.1)
    assert (scores("carl", "congruence", careless=1.0) == 3).all()
    erring = scores("anna", noise=0.5)
    assert (erring == scores("anna", noise=0.5)).all() and (erring != scores("zoë", noise=0.5)).any()


def test_a_damaged_image_is_known_to_be_bad_and_faults_that_are_seen_count(tmp_path):
    pool = tiny_pool(tmp_path, 8, 0, controls=1)
    seen = pool.items[0].item
    truth = scripted.truths(pool, lambda item: {"quality": 2} if item.item == seen else {})
    assert truth[seen]["quality"] == 2 and sum(levels["quality"] for levels in truth.values()) == 3 * 8 - 1


@pytest.mark.parametrize("text, message", [
    ("anna:noise=2", "between 0 and 1"), ("anna:nois=0.1", "known: noise, bias, careless, share"), ("anna:noise", "NAME:option"),
    ("", "give one or more"), ("anna;Anna", "each name once"), (":noise=0.1", "needs a name"), ("anna:bias=nan", "levels")])
def test_faults_in_the_words_for_raters_are_told(text, message):
    with pytest.raises(ValueError, match=message):
        scripted.parse(text)


def test_a_rehearsal_from_pool_to_verdict(tmp_path, inside):
    pool = tiny_pool(tmp_path / "pool", 60, 6, controls=20, real=6)
    nobody = inside("scripts/rating_agreement.py", f"--pool={pool.folder}", f"--out={tmp_path / 'none'}")
    assert "There are no answers yet" in nobody.stdout and not (pool.folder / "ratings.sqlite").exists()
    given = "--raters=anna:noise=0.15,share=0.5;bob:noise=0.15,bias=-0.5"
    assert "scripted anna: 33 items" in inside("scripts/simulate_raters.py", f"--pool={pool.folder}", given).stdout
    given = "--raters=anna:noise=0.15;bob:noise=0.15,bias=-0.5"
    again = inside("scripts/simulate_raters.py", f"--pool={pool.folder}", given)  # she goes on with the other half
    assert "scripted anna: 33 items" in again.stdout
    done = inside("scripts/rating_agreement.py", f"--pool={pool.folder}", f"--out={tmp_path / 'out'}", "--resamples=200")
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert found["signal"]["congruence"] is True and found["counts"]["answers"] == 132
    assert "are programs, not people" in done.stdout and (tmp_path / "out" / "agreement.png").exists()
    assert all(sentence in (tmp_path / "out" / "agreement.md").read_text() for sentence in found["verdict"])
    with Store.of(pool) as store:
        assert {answer.rater for answer in store.answers()} == {"scripted anna", "scripted bob"}
        assert len(store.answers(history=True)) == 132


def test_mistakes_on_the_command_line_are_one_line(tmp_path, inside):
    assert "is no pool" in inside("scripts/rating_agreement.py", f"--pool={tmp_path}", fails=True).stderr
    assert "is no pool" in inside("scripts/simulate_raters.py", f"--pool={tmp_path}", fails=True).stderr
    pool = tiny_pool(tmp_path / "pool")
    assert "--resamples=5" in inside("scripts/rating_agreement.py", f"--pool={pool.folder}", "--resamples=5", fails=True).stderr
    assert "each name once" in inside("scripts/simulate_raters.py", f"--pool={pool.folder}", "--raters=a;a", fails=True).stderr
    assert "32 x 32" in inside("scripts/simulate_raters.py", f"--pool={pool.folder}", "--truth=phantoms", fails=True).stderr


def test_drawn_lesions_are_read_for_what_their_prompts_say(tmp_path, inside):
    """A rater without errors knows right lesions from those under a foreign prompt, and from no lesion at all."""
    axes = [Axis("quality", "?", {1: "bad", 2: "good"}, 2), Axis("congruence", "?", {1: "no", 2: "in part", 3: "yes"}, 2)]
    drawn = [phantoms.draw(0, i, 32) for i in range(40)]
    right = [building.Candidate(lambda each=each: each.image, each.caption, "") for each in drawn]
    foreign = [building.Candidate(lambda each=each: each.image, other.caption, "", source={"model": "foreign"})
               for each, other in zip(drawn[:20], drawn[20:])]
    blank = building.Candidate(lambda: np.full((32, 32, 3), 200, np.uint8), drawn[0].caption, "", source={"model": "blank"})
    pool = building.build(tmp_path, [*right, *foreign, blank], axes=axes)
    inside("scripts/simulate_raters.py", f"--pool={tmp_path}", "--raters=anna", "--truth=phantoms")
    with Store.of(pool) as store:
        scores = {}
        for answer in store.answers():
            scores.setdefault(pool.by_name[answer.item].source.get("model", "right"), []).append(answer.scores)
    assert sum(each == {"quality": 2, "congruence": 3} for each in scores["right"]) >= 0.9 * 40
    wrong = sum(any(one.attributes[key] != other.attributes[key] for key in ("size", "colour", "skin"))
                for one, other in zip(drawn[:20], drawn[20:]))
    assert sum(each["congruence"] < 3 for each in scores["foreign"]) >= 0.9 * wrong > 5
    assert scores["blank"] == [{"quality": 1, "congruence": 1}]
