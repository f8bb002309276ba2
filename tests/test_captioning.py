"""Captioning without a network: prompt files, checks, the table on disk, and the way from image to description."""

import csv
import importlib
import inspect
import itertools
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from libs import captioning, cli, data
from libs.captioning import checks, local, prompts, server, shortening
from tests.conftest import ROOT

PROMPTS = sorted(path.stem for path in prompts.FOLDER.glob("*.toml"))
TWO_STEPS = """
domain = "test image"
start = "A {label}"
features = "shape, colour, size"
[labels]
NV = "nevus"
[[steps]]
name = "kinds"
image = false
prompt = "What varies in a {domain}?"
[[steps]]
name = "text"
prompt = "Describe {label} by {features}, knowing {kinds}. Begin with {start}."
"""
ROW = captioning.Caption("a.png", "A round lesion.", "NV", "llava", "p@1", 1, {"text": "A round\nlesion, \"red\"."})


@pytest.fixture
def procedure(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO_STEPS)
    return captioning.load_prompts(str(path))


class Model:
    """Answers by a function of (prompt, image, seed, retry) and remembers what it was asked."""

    name = "fake"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def ask(self, prompt, image=None, *, seed=0, retry=False):
        self.asked.append((prompt, image is not None, seed, retry))
        return self.answer(prompt, image, seed, retry)

    def close(self):
        pass


def seen(prompt, image, seed=0, retry=False):
    """A description that follows the image."""
    return "round, oval" if image is None else f"A nevus of grey level {image.getpixel((0, 0))[0]} on skin."


def items(n, label="NV"):
    return [captioning.Item(f"{k}.png", label, lambda k=k: Image.new("RGB", (4, 4), (k, 0, 0))) for k in range(n)]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_files_hold_what_their_paper_asks(name):
    procedure = captioning.load_prompts(name)
    assert procedure.version.startswith(f"{name}@")
    if name.startswith("vap"):
        assert [step.image for step in procedure.steps] == [True, False, True] and not procedure.uses_label
        last = procedure.fill(procedure.steps[-1].prompt, "", {"impression": "SEEN {this}", "variation": "VARIES"})
        assert "SEEN {this}" in last and "VARIES" in last and "proportion" in last
    else:
        assert procedure.uses_label and len(procedure.steps) == 1
        start = procedure.start_for(next(iter(procedure.labels)))
        assert start.endswith(next(iter(procedure.labels.values())))
        assert start in procedure.fill(procedure.steps[0].prompt, next(iter(procedure.labels)), {})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*_captions.py")))
def test_configs_name_what_exists(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    cli.check(config)
    assert f"--config=configs/{name}.py" in module.__doc__
    assert set(config) - {"t5_simplify"} == {"seed", "limit", "input", "prompts", "model", "transformers", "server", "checks",
                                             "output"}
    assert set(config.get("t5_simplify", {})) <= set(inspect.signature(shortening.T5Simplify).parameters)
    procedure = captioning.load_prompts(config.prompts)
    rules = checks.Rules(forbidden=config.checks.forbidden)
    starts = [procedure.start_for(label) for label in procedure.labels] or [""]
    assert not any(rules.faults(f"{start} round.", start) for start in starts)
    for options in (dict(config.model) | dict(config.server), dict(config.model) | dict(config.transformers)):
        build = server.Server if "base_url" in options else local.Local
        assert set(options) - {"name"} <= set(inspect.signature(build).parameters)


@pytest.mark.parametrize("change, fault", [
    (("{kinds}", "{later}"), r"step 'text' uses \['later'\]"), (("[[steps]]", "[[step]]"), "'step' is not one of"),
    (("image = false", "image = 0"), "perhaps image"), (('name = "text"', 'name = "label"'), "step name 'label'"),
    (("A {label}", "A {domain}"), "start may use"), (('= "nevus"', "= 3"), "labels are texts"),
    (('name = "text"', 'name = "text"\nimage = false'), "last step must see"), (("domain =", "domain"), "not TOML")])
def test_faults_of_prompt_files_are_named(tmp_path, change, fault):
    path = tmp_path / "bad.toml"
    path.write_text(TWO_STEPS.replace(*change))
    with pytest.raises(ValueError, match=f"bad.toml: .*{fault}"):
        captioning.load_prompts(str(path))


def test_a_changed_prompt_file_is_another_version(tmp_path, procedure):
    path = tmp_path / "two.toml"
    path.write_text(TWO_STEPS.replace("What varies", "What differs"))
    assert captioning.load_prompts(str(path)).version != procedure.version
    with pytest.raises(ValueError, match="did you mean 'vap_isic'"):
        captioning.load_prompts("vap_isik")


@pytest.mark.parametrize("check, bad, good", [
    (checks.refusal, ["", " ", "...", "I’m sorry, but I can't help.", "I cannot describe this", "As an AI model, I"],
     ["A lesion with I-shaped streaks.", "The border cannot be told from the skin."]),
    (lambda text: checks.begins(text, "An image of a nevus"), ["A nevus"], ["an image of  a nevus, brown"]),
    (lambda text: checks.length(text, 2, 4), ["one", "one two three four five"], ["one two", "one two three four"]),
    (lambda text: checks.echo(text, "shape, colour, size and texture"),
     ["By shape, colour, size, and texture: a lesion", "Shape colour size texture"],
     ["The shape is round, the colour brown, the size small, the texture smooth."]),
    (lambda text: checks.echo(text, "colour"), [], ["The colour is brown."]),
    (checks.measurement, ["5 mm wide", "a 3-cm mass", "a ratio of 0.62", "about 40 pixels"],
     ["30% of the image", "12.5 percent of it", "2 lobes", "a third of the image"]),
    (lambda text: checks.diagnosis(text, ("nevus", "basal cell")), ["A Nevus.", "basal cell type"], ["nevuslike", "basal"])])
def test_checks(check, bad, good):
    assert all(check(text) for text in bad), [text for text in bad if not check(text)]
    assert not any(check(text) for text in good), [check(text) for text in good if check(text)]


def test_texts_are_tidied_and_shortened_by_sentences():
    assert checks.tidy("<think>hm {x}</think>\nSure, here is the description: **A round**\nlesion.") == "A round lesion."
    assert checks.tidy('"A lesion."') == "A lesion." and checks.tidy("- A b\n- c") == "A b c"
    rules = checks.Rules(max_words=5)
    assert rules.fit("One two. Three four. Five six.") == "One two. Three four."
    assert rules.fit("One two three four five six.") == "One two three four five six."
    assert checks.Rules(max_tokens=9, count=len).fit("One two. Three.") == "One two."
    assert checks.Rules(max_tokens=9, count=len).faults("One two. Three.") == ["length: 15 tokens, at most 9 allowed"]
    assert checks.whole_sentences("A b. C d") == "A b." and checks.whole_sentences("A b") == "A b"
    assert checks.identical(["A  b", "a B", "c"]) == (2 / 3, "a B") and checks.identical(["a", "b"]) == (0, "")
    assert checks.same("a b c", "C, b a") and not checks.same("a b c", "a b d")


def test_the_published_generator_is_asked_as_it_was():
    """Med-Art's VSG.py: features, start, 100 words; T 0.8, 50 tokens, 0.9, 150 new ones; 120 tokens of T5, beams as there."""
    config = importlib.import_module("configs.kvasir_captions").get_config()
    procedure = captioning.load_prompts(config.prompts)
    asked = procedure.fill(procedure.steps[0].prompt, "polyps", {})
    for word in ("color", "shape", "surrounding mucosa", "surface texture", "bleeding", '"An endoscopic image of polyps"',
                 "at most 100 words"):
        assert word in asked, word
    model, rules = config.model, config.checks
    assert (model.temperature, model.top_k, model.top_p, model.max_new_tokens) == (0.8, 50, 0.9, 150)
    assert (rules.max_words, rules.max_tokens, rules.shorten, rules.fallback) == (100, 120, "sentences", "start")
    assert dict(config.t5_simplify) == {"path": "t5-large", "prefix": "simplify: ", "max_length": 120, "min_length": 90,
                                        "num_beams": 4, "window": 512}
    echoed = f"An endoscopic image of polyps. {procedure.features}, all are visible."
    assert checks.Rules(features=procedure.features).faults(echoed, procedure.start_for("polyps"))[0].startswith("echo")


def test_simple_captions_name_their_class():
    procedure = captioning.load_prompts("vsg_kvasir")
    for text, label in (("An endoscopic image of polyps", "polyps"), ("an  endoscopic image of normal z-line. ", "normal z-line"),
                        ("A photo of polyps", ""), ("An endoscopic image of", ""), ("", "")):
        assert procedure.label_in(text) == label, text
    between = prompts.Procedure("x@1", (), start="A {label} under the microscope")
    assert between.label_in("A basophil under the microscope.") == "basophil" and between.label_in("A basophil") == ""
    assert prompts.Procedure("x@1", ()).label_in("A basophil") == ""


def test_estimated_tokens():
    """One for each four letters begun, one for each other sign, one for the end."""
    assert [checks.estimated_tokens(text) for text in ("", "red", "redly", "a b, c.", "surrounding mucosa")] == [1, 2, 3, 6, 6]


@pytest.mark.parametrize("answer, text, note", [
    ("A nevus is brown.", "A nevus is brown.", "simplified: from 9 to 4 words"),
    ("It is brown.", "A nevus. It is brown.", "simplified: from 9 to 5 words"),
    ("A nevus is brown. One two three four five.", "A nevus is brown.", "simplified: from 9 to 4 words"),
    ("I cannot.", "A nevus, round. It is brown.", "shortened: from 9 to 6 words"),
    ("One two three four five six.", "A nevus, round. It is brown.", "shortened: from 9 to 6 words")],
    ids=["as it is", "start restored", "still too long", "refused", "one long sentence"])
def test_a_second_model_shortens_where_it_does_so_well(procedure, answer, text, note):
    long, asked = "A nevus, round. It is brown. One of many.", []
    rules = checks.Rules(max_words=6, min_words=3, simplify=lambda said: asked.append(said) or answer)
    row = captioning.Describer(Model(lambda *_: long), procedure, rules, attempts=1).describe(items(1)[0])
    assert (row.text, row.checks) == (text, note) and asked == [long]
    short = captioning.Describer(Model(lambda *_: "A nevus, round."), procedure, rules, attempts=1).describe(items(1)[0])
    assert short.text == "A nevus, round." and len(asked) == 1, "what is short enough is not touched"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A T5 of random weights, with a tokenizer of words, in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
    words = ["<pad>", "</s>", "<unk>", *"a simplify : large red round brown lesion with pale border on skin .".split()]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                        decoder_start_token_id=0)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>",
                            pad_token="<pad>").save_pretrained(folder)
    return folder


def test_t5_simplifies_within_its_bounds(t5, monkeypatch):
    simplify = shortening.T5Simplify(path=str(t5), max_length=9, min_length=6, num_beams=2, window=8, device="cpu")
    asked = []
    generate = simplify.network.generate
    monkeypatch.setattr(simplify.network, "generate", lambda **options: asked.append(options) or generate(**options))
    said = simplify("a large red round brown lesion with pale border on skin")
    assert said == simplify("a large red round brown lesion with pale border on skin") and "<" not in said
    ids, = asked[0]["input_ids"].tolist()
    assert simplify.tokenizer.decode(ids) == "simplify : a large red round brown </s>", "cut at the window"
    assert 6 <= generate(**asked[0]).shape[1] <= 9 and asked[0]["num_beams"] == 2 and asked[0]["early_stopping"] is True
    for options, words in (({"min_length": 200}, "min_length=200, max_length=120"), ({"path": ""}, "path is empty"),
                           ({"num_beams": 0}, "num_beams=0")):
        with pytest.raises(ValueError, match=words):
            shortening.T5Simplify(**{"path": str(t5)} | options)
    with pytest.raises(OSError, match="nowhere"):
        shortening.T5Simplify(path=str(t5 / "nowhere"))


def test_text_only_steps_are_asked_once_also_after_a_resume(tmp_path, procedure):
    model = Model(seen)
    describer = captioning.Describer(model, procedure, checks.Rules())
    with captioning.Table(tmp_path / "captions.csv") as table:
        captioning.caption(items(4), describer, table, threads=4, progress=False)
        assert sum(not image for _, image, _, _ in model.asked) == 1 and len(model.asked) == 5
        assert ("Describe nevus by shape, colour, size, knowing round, oval. Begin with A nevus."
                in [prompt for prompt, *_ in model.asked])
        again = Model(seen)
        describer = captioning.Describer(again, procedure, checks.Rules(), known=table.rows.values())
        describer.describe(items(5)[4])
    assert [image for _, image, _, _ in again.asked] == [True]


def test_a_refused_text_only_step_is_asked_again_and_then_given_up(procedure):
    answers = iter(["I cannot.", "kinds"])
    model = Model(lambda prompt, image, seed, retry: seen(prompt, image) if image else next(answers, "Sorry, I can't."))
    assert captioning.Describer(model, procedure, checks.Rules()).describe(items(1)[0]).answers["kinds"] == "kinds"
    row = captioning.Describer(model, procedure, checks.Rules(), attempts=2).describe(items(1)[0])
    assert row.checks.startswith("unanswered: refusal: says \"I can't\" (to 'What varies") and len(model.asked) == 5


def test_threads_and_order_do_not_change_the_captions(tmp_path, procedure):
    found = []
    for threads, turn in ((1, 1), (4, -1)):
        model = Model(lambda prompt, image, seed, retry: f"A nevus {seed}." if image else f"kinds {seed}")
        with captioning.Table(tmp_path / f"{threads}.csv") as table:
            captioning.caption(items(9)[::turn], captioning.Describer(model, procedure, checks.Rules(), seed=3), table,
                               threads=threads, progress=False)
            found.append(table.rows)
    assert found[0] == found[1] and len({row.text for row in found[0].values()}) == 9


def test_another_answer_is_asked_for_until_it_passes(procedure):
    answers = iter(["I cannot.", "A nevus 4 mm wide.", "A nevus, round. It is brown. It is one of many."])
    model = Model(lambda prompt, image, seed, retry: next(answers) if image else "kinds")
    rules = checks.Rules(no_measurements=True, max_words=6)
    row = captioning.Describer(model, procedure, rules, attempts=3).describe(items(1)[0])
    assert (row.text, row.attempts, row.checks) == ("A nevus, round. It is brown.", 3, "shortened: from 11 to 6 words")
    asked = [(seed, retry) for _, image, seed, retry in model.asked if image]
    assert len({seed for seed, _ in asked}) == 3 and [retry for _, retry in asked] == [False, True, True]


def test_what_fails_is_kept_with_the_reason_or_stops(tmp_path, procedure):
    model = Model(lambda prompt, image, seed, retry: "Brown, 4 mm." if image else "kinds")
    describer = captioning.Describer(model, procedure, checks.Rules(no_measurements=True), attempts=2)
    with captioning.Table(tmp_path / "captions.csv") as table:
        captioning.caption(items(2), describer, table, progress=False)
        row = table.rows["1.png"]
        assert row.text == "" and row.attempts == 2 and row.failed_for == ["start", "measurement"]
        assert row.answers == {"kinds": "kinds", "text": "Brown, 4 mm."}
        options = {"model": "fake", "prompt": procedure.version, "on_change": "stop"}
        assert table.todo(["0.png", "1.png", "2.png"], **options) == ["2.png"]
        assert table.todo(["0.png", "1.png"], redo_failed=True, **options) == ["0.png", "1.png"]
        with pytest.raises(ValueError, match=r"5.png: start: .*on_fail=mark"):
            captioning.caption(items(6)[5:], describer, table, on_fail="stop", progress=False)
        assert "5.png" in table.rows
        report = captioning.report(list(table.rows.values()), images=6, dependence={}, max_identical=.5, max_unchanged=.3)
    assert (report["asked"], report["described"]) == (3, 0) and report["checks"]["measurement"]["count"] == 3
    assert any("failed start: 3, such as" in line for line in captioning.summary(report))


def test_unreadable_images_and_silent_models_are_asked_for_again(tmp_path, procedure):
    def silent(*_):
        raise captioning.Unanswered("HTTP 500")

    def unreadable():
        raise ValueError("9.png: truncated or damaged")

    describer = captioning.Describer(Model(silent), procedure, checks.Rules())
    with captioning.Table(tmp_path / "captions.csv") as table:
        with pytest.raises(ValueError, match="3 images in a row got no answer .*HTTP 500"):
            captioning.caption(items(20), describer, table, give_up=3, progress=False)
        row = describer.describe(captioning.Item("9.png", "NV", unreadable))
        assert row.checks == "image: 9.png: truncated or damaged" and row.attempts == 0
        table.append(row)
        names = list(table.rows)
        assert table.todo(names, model="fake", prompt=procedure.version, on_change="stop") == names


def test_image_dependence_tells_a_model_that_looks_from_one_that_does_not(procedure):
    for answer, same in ((seen, 0), (lambda prompt, *_: f"A nevus, {len(prompt)} brown.", 4)):
        describer = captioning.Describer(Model(answer), procedure, checks.Rules())
        those = items(4)
        rows = {item.file_name: describer.describe(item) for item in those}
        found = captioning.image_dependence(describer, those, rows, threads=2)
        for kind in ("blank", "shuffled"):
            assert (found[kind]["n"], found[kind]["same"]) == (4, same)
        assert len(captioning.unchanged(found, 0.3)) == (2 if same else 0)
        report = captioning.report(list(rows.values()), images=4, dependence=found, max_identical=.5, max_unchanged=.3)
        assert len(report["problems"]) == (3 if same else 0), "and one text for all images is told as well"


def test_one_text_for_all_images_stops_the_work_early(tmp_path, procedure):
    describer = captioning.Describer(Model(lambda *_: "A nevus."), procedure, checks.Rules())
    with captioning.Table(tmp_path / "captions.csv") as table:
        with pytest.raises(ValueError, match="100% of 20 images got the same text: 'A nevus.'"):
            captioning.caption(items(60), describer, table, on_fail="stop", progress=False)
        assert 20 <= len(table.rows) < 60


def test_a_table_torn_anywhere_keeps_its_whole_lines(tmp_path):
    path, rows = tmp_path / "captions.csv", [replace(ROW, file_name=f"é{k},\"x\".png") for k in range(3)]
    with captioning.Table(path) as table:
        for row in rows:
            table.append(row)
    whole = path.read_bytes()
    draw = random.Random(0)
    for cut in [0, 3, *draw.sample(range(len(whole)), 25), len(whole)]:
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n") - 1
        with captioning.Table(path) as table:
            assert list(table.rows.values()) == rows[:max(complete, 0)]
            table.append(rows[2])
        with captioning.Table(path) as table:
            assert table.rows[rows[2].file_name] == rows[2]
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file))[0]["file_name"] == rows[0].file_name, "other programs read it as CSV"


@pytest.mark.parametrize("answer, text", [
    ("A nevus \ud83d, pale.", "A nevus \ufffd, pale."), ("A nevus \U0001f600.", "A nevus \U0001f600."),
    ("brown " * 40_000, ("brown " * 4_000)[:20_000].strip()), ("It is pale. " * 20_000, ("It is pale. " * 1_666).strip())])
def test_answers_that_no_table_could_hold(tmp_path, procedure, answer, text):
    describer = captioning.Describer(Model(lambda *_: answer), procedure, checks.Rules())
    with captioning.Table(tmp_path / "captions.csv") as table:
        captioning.caption(items(1, label=""), describer, table, progress=False)
        row = table.rows["0.png"]
    assert set(row.answers) == {"kinds", "text"} and set(row.answers.values()) == {text} and len(text) <= 20_000
    with captioning.Table(tmp_path / "captions.csv") as table:
        assert table.rows == {"0.png": row}


def test_many_long_answers_are_read_again(tmp_path, procedure):
    """Together they are one field, longer than Python's csv takes by default."""
    limit = csv.field_size_limit(131_072)
    describer = captioning.Describer(Model(lambda *_: '\\"' * 10_000), procedure, checks.Rules())
    try:
        with captioning.Table(tmp_path / "captions.csv") as table:
            captioning.caption(items(1), describer, table, progress=False)
            table.append(replace(table.rows["0.png"], file_name="1.png", answers={"kinds": "x" * 140_000}))
            rows = dict(table.rows)
        with captioning.Table(tmp_path / "captions.csv") as table:
            assert table.rows == rows
    finally:
        csv.field_size_limit(limit)


def test_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(captioning.table, "PATIENCE", 0.1)
    path = tmp_path / "captions.csv"
    hold = ("import sys; from libs import captioning; table = captioning.Table(sys.argv[1]); print('held', flush=True); "
            "sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", hold, str(path)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is describing into .*captions.csv"):
            captioning.Table(path)
    finally:
        other.kill()
        other.communicate()
    with captioning.Table(path) as table:
        table.append(ROW)
    with captioning.Table(path) as table:
        assert table.rows == {"a.png": ROW}, "released when it was closed"


def test_what_is_no_table_of_captions_stays_untouched(tmp_path):
    path = tmp_path / "captions.csv"
    for content, fault in (("file_name,text\na.png,x\n", "line 1"), ("my notes", "not a table of captions"),
                           (",".join(captioning.table.COLUMNS) + "\na,b\n", "line 2")):
        path.write_text(content)
        with pytest.raises(ValueError, match=fault):
            captioning.Table(path)
        assert path.read_text() == content
    path.unlink()
    with captioning.Table(path) as table, pytest.raises(ValueError, match="line break"):
        table.append(replace(ROW, file_name="a\nb.png"))


def test_rows_of_other_prompts_are_kept_redone_or_refused(tmp_path):
    with captioning.Table(tmp_path / "captions.csv") as table:
        table.append(ROW)
        for model, prompt in itertools.product(("llava", "qwen"), ("p@1", "p@2")):
            ask = {"names": ["a.png", "b.png"], "model": model, "prompt": prompt}
            other = (model, prompt) != ("llava", "p@1")
            assert table.todo(**ask, on_change="keep") == ["b.png"]
            assert table.todo(**ask, on_change="redo") == (["a.png", "b.png"] if other else ["b.png"])
            if other:
                with pytest.raises(ValueError, match=f"1 captions of another .*llava, p@1; now {model}, {prompt}"):
                    table.todo(**ask, on_change="stop")
        with pytest.raises(ValueError, match="known: keep, redo, stop"):
            table.todo([], model="", prompt="", on_change="ask")


def test_the_final_table_is_read_as_training_data(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [{"file_name": "a.png", "text": "Round, \"red\".", "label": "NV", "split": "train", "mask": ""},
            {"file_name": "b.png", "text": "", "label": "MEL", "split": "test", "age": 3}]
    captioning.write_metadata(tmp_path / "metadata_captions.csv", rows)
    dataset = data.get(name="folder", path=tmp_path / "metadata_captions.csv", resolution=8)
    assert dataset.captions == ['Round, "red".', ""] and dataset.classes == ["MEL", "NV"]
    assert dataset.rows[1]["age"] == "3" and "mask" not in dataset.rows[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "metadata_captions.csv"]


def test_a_required_start_may_name_what_is_forbidden_elsewhere():
    rules = checks.Rules(forbidden=("nevus",))
    assert not rules.faults("A nevus, round.", "A nevus") and rules.faults("A nevus, a round nevus.", "A nevus")
    assert len(rules.faults("The nevus.", "A nevus")) == 2
