"""Tables that a user brings: values that are no text, names of missing values, strict readers."""

import json

import pytest

from libs import data, pipeline, tables
from libs.evaluation import sorting
from libs.ratings.learning import answers_of_table
from tests.layouts import folder, image, mask


def jsonl(root, *records, name="metadata.jsonl"):
    for k in range(len(records)):
        image(root / f"{k}.png", seed=k)
        mask(root / f"m{k}.png")
    lines = [
        record if isinstance(record, str) else json.dumps({"file_name": f"{k}.png"} | record)
        for k, record in enumerate(records)
    ]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def csv(root, text, name="metadata.csv", images=4):
    for k in range(images):
        image(root / f"{k}.png", seed=k)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def refused(root, **options):
    with pytest.raises(ValueError) as error:
        folder(root, **options)
    return str(error.value)


@pytest.mark.parametrize(
    "field, value, kind",
    [
        ("label", ["nevus", "atypia"], "a list"),
        ("label", {"a": 1}, "an object"),
        ("label", True, "a truth value"),
        ("label", 0.5, "a number"),
        ("label", 1.0, "a number"),
        ("text", ["a brown mole", "a mole"], "a list"),
        ("text", ["a mole"], "a list"),
        ("text", 5, "a number"),
        ("text", {"en": "a mole"}, "an object"),
        ("text", False, "a truth value"),
        ("mask_file_name", ["m0.png", "m1.png"], "a list"),
        ("mask_file_name", 1, "a number"),
        ("split", ["train"], "a list"),
        ("split", 0.1, "a number"),
        ("patient", [1], "a list"),
        ("patient", 1.5, "a number"),
        ("file_name", ["0.png"], "a list"),
        ("file_name", 1, "a number"),
        ("modality", ["OCT"], "a list"),
    ],
)
def test_a_value_of_json_that_is_no_text_is_named(tmp_path, field, value, kind):
    row = {
        "label": "a",
        "text": "x",
        "mask_file_name": "m1.png",
        "split": "train",
        "patient": "p",
        "modality": "OCT",
    }
    root = jsonl(tmp_path, row | {"mask_file_name": "m0.png"}, row | {field: value})
    options = {"group_column": "patient", "split": "train"}
    if field == "modality":
        (root / "metadata.jsonl").rename(root / "t.jsonl")
        with pytest.raises(ValueError) as error:
            data.get(
                name="path_text",
                path=str(root / "t.jsonl"),
                resolution=16,
                path_column="file_name",
                text_column="text",
            )
        said = str(error.value)
    else:
        said = refused(root, **options)
    assert f"jsonl:2: {field} is {kind}, {json.dumps(value)}" in said and "1 problem" in said
    if field == "text" and kind == "a list":
        assert "--config.dataset.doubled_files=keep" in said


def test_the_advice_for_several_texts_works(tmp_path):
    row = {"file_name": "0.png", "label": "a"}
    root = jsonl(tmp_path, row | {"text": "a brown mole"}, row | {"text": "a mole"})
    dataset = folder(root, doubled_files="keep")
    assert dataset.captions == ["a brown mole", "a mole"] and dataset.labels.tolist() == [0, 0]
    jsonl(tmp_path, row | {"text": ["a brown mole", "a mole"]})
    assert folder(root, text_column="").captions is None, "texts that are not used may be anything"


def test_whole_numbers_are_names_and_null_is_nothing(tmp_path):
    root = jsonl(
        tmp_path, *({"label": k, "patient": 10 + k, "split": "train", "text": None} for k in (1, 2, 10))
    )
    dataset = folder(root, group_column="patient", split="train")
    assert dataset.classes == ["1", "2", "10"] and [dataset.groups[i] for i in range(3)] == ["11", "12", "20"]
    assert dataset.captions == ["", "", ""]
    assert "jsonl:2: label is empty" in refused(jsonl(tmp_path, {"label": "a"}, {"label": None}))
    assert "jsonl:2: label is empty" in refused(
        jsonl(tmp_path, {"label": "a"}, '{"file_name": "1.png", "label": NaN}')
    )
    assert "keys ['label'] occur twice" in refused(
        jsonl(tmp_path, '{"file_name": "0.png", "label": "a", "label": "b"}')
    )


@pytest.mark.parametrize(
    "value", ["nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaT", " nan "]
)
def test_labels_that_programs_write_for_nothing(tmp_path, value):
    root = csv(tmp_path, f"file_name,label\n0.png,nevus\n1.png,{value}\n2.png,b\n3.png,{value}\n")
    said, name = refused(root), value.strip()
    assert f"label {name!r} of 2 images (metadata.csv:3, metadata.csv:5)" in said
    assert (
        folder(root, drop_classes=(name,)).classes == ["b", "nevus"] and f'drop_classes="({name!r},)"' in said
    )
    assert set(folder(root, classes=(name, "b", "nevus")).classes) == {name, "b", "nevus"}, (
        "classes= says that one is called so"
    )
    assert f"classes=\"({name!r}, 'b', 'nevus')\"" in said
    assert f"label {name!r} of 1 image (metadata.jsonl:2)" in refused(
        jsonl(tmp_path / "b", {"label": "a"}, {"label": value})
    )


@pytest.mark.parametrize("value", ["none", "na", "Nathan", "nano", "0", "-", "no"])
def test_names_that_are_findings(tmp_path, value):
    assert value in folder(csv(tmp_path, f"file_name,label\n0.png,a\n1.png,{value}\n", images=2)).classes


def test_missing_patients_splits_and_texts(tmp_path, caplog):
    said = refused(
        csv(tmp_path, "file_name,split,patient\n0.png,train,nan\n1.png,NaN,7\n", images=2),
        group_column="patient",
    )
    assert (
        "metadata.csv:2: patient is 'nan', which programs write" in said
        and "metadata.csv:3: split is 'NaN'" in said
    )
    root = csv(tmp_path, "file_name,text\n0.png,nan\n1.png,a mole\n", images=2)
    assert folder(root).captions == ["", "a mole"] and "metadata.csv:2: 'nan'" in caplog.text
    assert "metadata.csv:2: text is empty" in refused(root, require=("text",))
    assert folder(root, require=("text",), missing_captions="skip").captions == ["a mole"]
    (tmp_path / "t.csv").write_text("path,Text,modality\n0.png,drusen,nan\n1.png,cyst,OCT\n")
    texts = data.get(name="path_text", path=str(tmp_path / "t.csv"), resolution=16).captions
    assert texts == ["drusen", "OCT: cyst"]
    image(tmp_path / "c" / "nan" / "1.png")
    image(tmp_path / "c" / "None" / "1.png")
    assert "label 'nan' of 1 image (nan/1.png)" in refused(tmp_path / "c")
    assert folder(tmp_path / "c", drop_classes=("nan",)).classes == ["None"], (
        "a folder that a person may have called so"
    )


def test_a_table_that_cannot_be_read_is_not_preceded_by_noise(tmp_path, caplog):
    root = csv(tmp_path, "file_name,label\n0.png,a,b\n")
    assert "3 fields where the header has 2" in refused(root) and not caplog.text


PROMPTS = {  # text of a CSV: what its refusal says
    "prompt\na red, round cell\n": ":2: 2 fields where the header has 1; put a text that holds a comma in double quotes",
    "prompt,modality\na red, round cell,OCT\n": ":2: 3 fields where the header has 2",
    "prompt,label\na cell\n": ":2: 1 fields where the header has 2; add what is missing",
    "prompt,prompt\na,b\n": "columns ['prompt'] occur twice",
    "prompt;label\na cell;nevus\n": "columns are separated by ';'",
    "prompt\tlabel\na cell\tnevus\n": "columns are separated by '\\t'",
    "text\na spot\n": "'prompt' is needed",
    'prompt\n"a cell\n': "not CSV from here on",
    "prompt,label\n,nevus\n": ":2: prompt is empty",
    "prompt,label\nnan,nevus\n": ":2: prompt is 'nan'",
    "prompt\n": "no prompt in it",
    "": "no header; expected prompt",
}


@pytest.mark.parametrize("text", PROMPTS)
def test_prompts_are_never_cut(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    for read in (pipeline.read_prompts, pipeline.read_modalities):
        with pytest.raises(ValueError) as error:
            read(tmp_path / "p.csv")
        assert PROMPTS[text] in str(error.value) and "p.csv" in str(error.value)


def test_prompts_as_people_write_them(tmp_path):
    path = tmp_path / "p.CSV"
    path.write_bytes(
        '\ufeffPrompt , Label, modality\r\n"a red, round cell" ,nevus, OCT\r\n\r\n an oval cell,,\r\n'.encode()
    )
    assert pipeline.read_prompts(path) == [("OCT: a red, round cell", "nevus"), ("an oval cell", "")]
    assert pipeline.read_modalities(path) == {"OCT: a red, round cell": "OCT"}
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red, round cell", "label": "nevus"}\n{"prompt": "b", "label": 3}\n'
    )
    assert pipeline.read_prompts(tmp_path / "p.jsonl") == [("a red, round cell", "nevus"), ("b", "3")]
    (tmp_path / "p.jsonl").write_text('{"prompt": ["a", "b"]}\n')
    with pytest.raises(ValueError, match=r"p.jsonl:1: prompt is \['a', 'b'\]"):
        pipeline.read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.csv", "prompt\nläsion\n".encode("latin-1"), "p.csv: not UTF-8"),
        ("p.txt", "läsion\n".encode("latin-1"), "p.txt: not UTF-8"),
        ("p.txt", "a cell\n".encode("utf-16"), "p.txt: not UTF-8"),
        ("p.txt", b"prompt,label\na,b\n", "rename it to p.csv"),
        ("p.tsv", b"prompt\ta\n", "expected a text file"),
        ("p.xlsx", b"PK\3\4", "expected a text file"),
    ],
)
def test_files_of_prompts_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pipeline.read_prompts(tmp_path / name)


class Pool:
    class Axis:
        name = "realism"

    axes = [Axis]


@pytest.mark.parametrize(
    "text, message",
    [
        ("rater,item,realism\na,1,3,4\n", ":2: 4 fields where the header has 3"),
        ("rater,item\na,1\n", "column 'realism' is missing"),
        ("rater,item,realism\na,1,x\n", ":2: scores"),
        ("rater,item,realism,realism\na,1,3,1\n", "occur twice"),
        ("rater;item;realism\na;1;3\n", "separated by ';'"),
        ("rater,item,realism\nJosé,1,3\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_ratings_are_read_as_strictly(tmp_path, text, message):
    path = tmp_path / "answers.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="answers.csv.*" + message):
        answers_of_table(path, Pool)
    path.write_text("rater,item,realism,remark\na,1,3,fine\n")
    assert answers_of_table(path, Pool)[0].scores == {"realism": 3}


@pytest.mark.parametrize(
    "text, message",
    [
        ("file_name,text\n1.png,a red, round cell\n", ":2: 3 fields where the header has 2"),
        ("file_name,text,text\n1.png,a,b\n", "occur twice"),
        ("file_name,text\n1.png,é\n".encode("latin-1"), "metadata.csv: not UTF-8"),
    ],
)
def test_a_folder_that_a_filter_sorts(tmp_path, text, message):
    csv(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        sorting.listed(tmp_path, ())


def test_every_fault_of_a_table_at_once(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1\n1,2\n1,2,3\n")
    with pytest.raises(ValueError) as error:
        tables.read(tmp_path / "t.csv", ("a",))
    assert (
        "2 problems" in str(error.value) and "t.csv:2" in str(error.value) and "t.csv:4" in str(error.value)
    )
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert tables.read(tmp_path / "t.csv", ("a",)) == (["a", "b"], [(2, {"a": "1", "b": "2"})])
    with pytest.raises(ValueError, match="its columns are a, b; 'c' is needed"):
        tables.read(tmp_path / "t.csv", ("a", "c"))


def test_captions_of_published_sets(tmp_path):
    from libs.data import official
    from libs.data.table import Row

    (tmp_path / "c.jsonl").write_text(
        '{"file_name": "a.jpg", "text": "red"}\n{"file_name": "b.jpg", "text": "nan"}\n'
    )
    rows = [Row("x/a.jpg", ""), Row("x/b.jpg", "")]
    assert [row.text for row in official.describe(rows, str(tmp_path / "c.jsonl"), "skip")] == ["red"]
    (tmp_path / "c.jsonl").write_text('{"file_name": "a.jpg", "text": ["red", "blue"]}\n')
    with pytest.raises(ValueError, match="has no text but"):
        official.describe(rows, str(tmp_path / "c.jsonl"), "skip")
