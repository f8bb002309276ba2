"""Describe every image of a data set with a multimodal language model.

    python scripts/caption_images.py --config=configs/isic_captions.py --config.input.path=ISIC2018 --workdir=workdir/isic

<workdir>/captions.csv grows image by image, and the same command goes on where it stopped. At the end come report.json
and the table that training reads (--config.output.table). --config.limit=20 tries 20 images.
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

SHOWN = 3  # captions printed as they come


def main(config, workdir):
    check(config)
    dataset = data.get(**{"resolution": 64, "cache": "", **config.input})  # for its listing: images are read whole
    rows = listing(dataset)
    procedure = captioning.load_prompts(config.prompts)
    if procedure.uses_label and not dataset.classes:
        raise ValueError(f"prompts {config.prompts!r} name the {{label}}, but {dataset.root} is unlabelled")
    target = metadata_path(dataset, config, workdir)
    rules = rules_of(config.checks, procedure.features)
    model = captioning.get_model(**config.model, **config.get(config.model.name, {}))
    # The sample comes first: a model that does not look at the images is found before the hours are spent.
    order = np.random.default_rng(config.seed).permutation(sorted(rows))
    names = list(dict.fromkeys([*order[:config.checks.dependence].tolist(), *rows]))[:config.limit or None]
    sample, rest = names[:config.checks.dependence], names[config.checks.dependence:]
    report = Path(workdir) / "report.json"

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

    captioning.write_metadata(target, [{**rows[row.file_name], "text": row.text} for row in done])
    found = captioning.report(done, images=len(rows), dependence=dependence, max_identical=config.checks.max_identical,
                              max_unchanged=config.checks.max_unchanged)
    captioning.write_text(report, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print("\n".join([*captioning.summary(found), f"captions: {target}", f"report: {report}"]))
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


def listing(dataset):
    """{file name: its row in the table that training reads, without text}."""
    if not hasattr(dataset, "root"):
        raise ValueError(f"data set {dataset.name!r} has no image files to describe; give a folder or a table")
    rows = {}
    for i in range(len(dataset)):
        name = dataset.file_name(i)
        known = getattr(dataset, "rows", None)
        row = {"file_name": name, "text": "", "label": "", "split": dataset.splits[i] if dataset.splits else ""}
        row |= {key: value for key, value in known[i].items() if key != "text"} if known else {}
        if dataset.labels is not None:
            row["label"] = dataset.classes[dataset.labels[i]]
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


def metadata_path(dataset, config, workdir):
    """Where the final table goes: beside the images, whose names it holds, or into the workdir."""
    name = config.output.table
    if not name:
        return Path(workdir) / "metadata.csv"
    if Path(name).name != name or not name.endswith(".csv") or name in (*data.scan.TABLES, Path(config.input.path).name):
        raise ValueError(f"config.output.table is {name!r}; expected a file name such as metadata_captions.csv, to lie in "
                         f"{dataset.root}, other than that of the table read there; or '' for {workdir}/metadata.csv")
    return Path(dataset.root) / name


def rules_of(options, features):
    """The checks that each description has to pass."""
    count = None
    if options.max_tokens:
        from transformers import AutoTokenizer
        if not options.tokenizer:
            raise ValueError("config.checks.max_tokens needs config.checks.tokenizer: a hub name or a local folder")
        with no_own_code(options.tokenizer, "name another one by config.checks.tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
        count = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    return captioning.Rules(features=features, min_words=options.min_words, max_words=options.max_words, count=count,
                            max_tokens=options.max_tokens, no_measurements=options.no_measurements,
                            forbidden=tuple(options.forbidden))


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
