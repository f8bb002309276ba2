"""Describe every image of a data set with a multimodal language model.

    python scripts/caption_images.py --config=configs/isic_captions.py --config.input.path=ISIC2018 --workdir=workdir/isic

<workdir>/captions.csv grows image by image, and the same command goes on where it stopped. At the end come report.json
and the table that training reads (--config.output.table). --config.limit=20 tries 20 images. A table that has simple captions
('An endoscopic image of polyps') in place of labels says the classes as well.
"""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import captioning, cli, data  # noqa: E402
from libs.captioning.local import no_own_code  # noqa: E402
from libs.captioning.shortening import T5Simplify  # noqa: E402

SHOWN = 3  # captions printed as they come


def main(config, workdir):
    check(config)
    dataset = data.get(**{"resolution": 64, "cache": "", **config.input})  # for its listing: images are read whole
    dataset.upscale = True  # read whole, small ones are no fault
    data.check_sample(dataset, window_option="config.input.window")
    procedure = captioning.load_prompts(config.prompts)
    rows = listing(dataset, procedure)
    if config.checks.fallback and not procedure.start:
        raise ValueError(f"config.checks.fallback={config.checks.fallback!r}, but prompts {config.prompts!r} have no start")
    report = Path(workdir) / "report.json"
    target = metadata_path(dataset, config, workdir, report)
    rules, counted = rules_of(config, procedure.features)
    model = captioning.get_model(**config.model, **config.get(config.model.name, {}))
    # The sample comes first: a model that does not look at the images is found before the hours are spent.
    order = np.random.default_rng(config.seed).permutation(sorted(rows))
    names = list(dict.fromkeys([*order[:config.checks.dependence].tolist(), *rows]))[:config.limit or None]
    sample, rest = names[:config.checks.dependence], names[config.checks.dependence:]

    with captioning.Table(Path(workdir) / "captions.csv") as table:
        todo = set(table.todo(names, model=model.name, prompt=procedure.version, on_change=config.output.on_change,
                              redo_failed=config.output.redo_failed))
        print(f"{len(todo)} of {len(names)} images to describe with {model.name}, prompts {procedure.version}", flush=True)
        describer = captioning.Describer(model, procedure, rules, attempts=config.checks.attempts, seed=config.seed,
                                         known=list(table.rows.values()))
        dependence, show = {}, printer()
        try:
            for part in (sample, rest):
                captioning.caption([item_of(dataset, rows[name], config.input) for name in part if name in todo], describer,
                                   table, threads=config.output.threads, on_fail=config.checks.on_fail,
                                   give_up=config.checks.give_up, max_identical=config.checks.max_identical, done=show)
                if part is sample and sample:
                    items = [item_of(dataset, rows[name], config.input) for name in sample]
                    dependence = look(describer, items, table.rows, report, config)
        except KeyboardInterrupt:
            print(f"\ninterrupted: {len(table.rows)} images are in {table.path}; the same command goes on", file=sys.stderr)
            sys.exit(130)
        done = [table.rows[name] for name in rows if name in table.rows]

    captioning.write_metadata(target, [rows[row.file_name] | text_of(row, procedure, config.checks.fallback) for row in done])
    found = captioning.report(done, images=len(rows), dependence=dependence, max_identical=config.checks.max_identical,
                              max_unchanged=config.checks.max_unchanged)
    fallback = [row.file_name for row in done if config.checks.fallback and not row.text]
    found |= {"tokens": counted, "fallback": fallback, "table": {"path": str(target), "sha256": sha256_of(target)}}
    captioning.write_text(report, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    said = [f"{len(fallback)} have the fallback text, such as {fallback[0]} (column fallback)"] if fallback else []
    print("\n".join([*captioning.summary(found), *said, f"captions: {target}", f"report: {report}"]))
    if found["problems"] and config.checks.on_fail == "stop":
        raise ValueError("; ".join(found["problems"]))


def check(config):
    """ValueError for numbers that mean nothing, and for several processes."""
    if (world := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
        raise ValueError(f"WORLD_SIZE={world}: one process describes a data set; start it without torchrun or accelerate launch, "
                         "and set --config.output.threads=16 to have so many images in work at a server")
    sections = {"": config, "checks.": config.checks, "output.": config.output}
    least = {"limit": 0, "output.threads": 1, "checks.attempts": 1, "checks.give_up": 0, "checks.min_words": 0,
             "checks.max_words": 0, "checks.max_tokens": 0, "checks.dependence": 0}
    for path, low in least.items():
        section, dot, name = path.rpartition(".")
        if (value := sections[section + dot][name]) < low:
            raise ValueError(f"config.{path} is {value}; expected {low} or more")
    for name, known in (("shorten", ("sentences", "t5_simplify")), ("fallback", ("", "start"))):
        if config.checks[name] not in known:
            raise ValueError(f"config.checks.{name} is {config.checks[name]!r}; known: {', '.join(map(repr, known))}")


def listing(dataset, procedure):
    """{file name: its row in the table that training reads, without text}.

    Classes that the prompts need and no label tells are read off simple captions, such as 'An endoscopic image of polyps'.
    """
    if not hasattr(dataset, "root"):
        raise ValueError(f"data set {dataset.name!r} has no image files to describe; give a folder or a table")
    rows, spoken = {}, procedure.uses_label and not dataset.classes
    if spoken and not dataset.captions:
        raise ValueError(f"prompts {procedure.version!r} name the {{label}}, but {dataset.root} is unlabelled: give class "
                         f"folders, a column 'label', or a column 'text' such as {procedure.start!r}")
    unclear = [f"{dataset.wheres[i]}: {text[:60]!r}" for i, text in enumerate(dataset.captions or ())
               if spoken and not procedure.label_in(text)]
    if unclear:
        raise ValueError(f"{len(unclear)} texts do not name a class as {procedure.start!r} does: {'; '.join(unclear[:5])}; "
                         "mend them, or give a column 'label'")
    for i in range(len(dataset)):
        name = dataset.file_name(i)
        known = getattr(dataset, "rows", None)
        row = {"file_name": name, "text": "", "label": "", "split": dataset.splits[i] if dataset.splits else ""}
        row |= {key: value for key, value in known[i].items() if key != "text"} if known else {}
        if dataset.labels is not None:
            row["label"] = dataset.classes[dataset.labels[i]]
        elif spoken:
            row["label"] = procedure.label_in(dataset.captions[i])
        if getattr(dataset, "masks", None) is not None:
            row["mask_file_name"] = dataset.masks[i]
        rows.setdefault(name, row)
    return rows


def item_of(dataset, row, options):
    """An image as the captioning sees it: name, label, and a way to read all of its pixels."""
    def read():
        pixels = data.read_image(Path(dataset.root) / row["file_name"], window=tuple(options.get("window", ())))
        return Image.fromarray(((pixels + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0))

    return captioning.Item(row["file_name"], row["label"], read)


def metadata_path(dataset, config, workdir, report):
    """Where the final table goes: beside the images, whose names it holds, or into the workdir.

    metadata.csv, which is read in place of the class folders around it, is written only beside a table of another name that is
    read, and over none but that of an earlier session.
    """
    name, own = config.output.table, Path(config.input.path).expanduser()
    if not name:
        return Path(workdir) / "metadata.csv"
    target = Path(dataset.root) / name
    if (Path(name).name != name or not name.endswith(".csv") or name == own.name
            or name in data.scan.TABLES and not own.is_file()):
        raise ValueError(f"config.output.table is {name!r}; expected a file name such as metadata_captions.csv, to lie in "
                         f"{dataset.root}, other than that of the table read there; or '' for {workdir}/metadata.csv")
    before = json.loads(report.read_text(encoding="utf-8")).get("table", {}) if report.is_file() else {}
    if name in data.scan.TABLES and target.exists() and sha256_of(target) != before.get("sha256"):
        raise ValueError(f"config.output.table is {name!r}, but {target} is there already and not as {workdir} wrote it: move it "
                         "away, or give another name such as metadata_captions.csv")
    return target


def sha256_of(path):
    """Hex digest of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def text_of(row, procedure, fallback):
    """The text of an image for training; where it has no good description and `fallback` asks for it, the start of all, and
    under 'fallback' why."""
    if row.text or not fallback:
        return {"text": row.text}
    return {"text": f"{procedure.start_for(row.label)}.", "fallback": ", ".join(row.failed_for)}


def rules_of(config, features):
    """(the checks that each description has to pass, how its tokens are counted)."""
    options, simplify = config.checks, None
    count, counted = counter(options.tokenizer) if options.max_tokens else (None, "")
    if options.shorten == "t5_simplify":
        simplify = T5Simplify(**config.get("t5_simplify", {}))
    return captioning.Rules(features=features, min_words=options.min_words, max_words=options.max_words, count=count,
                            max_tokens=options.max_tokens, no_measurements=options.no_measurements,
                            forbidden=tuple(options.forbidden), simplify=simplify), counted


def counter(name):
    """(text -> tokens, who counts): the tokenizer `name`, or an estimate where it is one of the hub that is not at hand."""
    from transformers import AutoTokenizer
    if not name:
        raise ValueError("config.checks.max_tokens needs config.checks.tokenizer: a hub name or a local folder")
    try:
        with no_own_code(name, "name another one by config.checks.tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        if Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
            raise
        logging.warning("the tokenizer %s (config.checks.tokenizer) is not at hand, and tokens are estimated: one for each four "
                        "letters begun of a word, one for each other sign (%s)", name, str(error).splitlines()[0][:200])
        return captioning.estimated_tokens, f"estimated: {name} was not at hand"
    return lambda text: len(tokenizer(text)["input_ids"]), f"counted by {name}"


def look(describer, items, rows, report, config):
    """Whether descriptions follow the image; from the last report, where it looked at the same rows.

    Said at once where they do not, and the end of the work where config.checks.on_fail is 'stop'.
    """
    texts = [[rows[item.file_name].text, rows[item.file_name].model, rows[item.file_name].prompt] for item in items]
    of = hashlib.sha256(json.dumps([config.seed, texts]).encode()).hexdigest()[:16]
    if report.is_file() and (known := json.loads(report.read_text(encoding="utf-8"))["dependence"]).get("of") == of:
        found = known
    else:
        found = captioning.image_dependence(describer, items, rows, threads=config.output.threads) | {"of": of}
    problems = captioning.unchanged(found, config.checks.max_unchanged)
    if problems and config.checks.on_fail == "stop":
        raise ValueError("; ".join(problems))
    for problem in problems:
        logging.warning(problem)
    return found


def printer():
    """A function that prints the first captions, so that one sees early what comes."""
    shown = []

    def show(row):
        if len(shown) < SHOWN:
            shown.append(row)
            tqdm.write(f"{row.file_name}: {row.text or 'FAILED ' + row.checks}")

    return show


if __name__ == "__main__":
    cli.main(main)
