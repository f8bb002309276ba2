"""Write the images that a config trains on as a folder: PNG files of its resolution, and metadata.csv with their labels and texts.

Any data set (class folders, 16-bit images under their window, drawn lesions) becomes a folder for
dataset.name=folder, or for other software. The folder appears whole or not at all. Nothing is mirrored;
masks, splits and groups are not written. Images lie in a folder of their class; where its name is none that
every file system takes, the folder is called otherwise and metadata.csv has the name.

    python scripts/export_images.py --config=configs/phantom32_dit_label.py --output=data/lesions
    python scripts/export_images.py --config=configs/phantom32_dit_label.py --config.dataset.cast="(1.0,0.8,0.6)" --output=data/warm
"""

import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, data, evaluation, pipeline  # noqa: E402
from libs.engine.checkpoint import write_text  # noqa: E402
from libs.engine.file_names import distinct_names  # noqa: E402
from libs.nn.pretrained import written_whole  # noqa: E402

TABLE = "metadata.csv"


def export(config, output):
    if not output:
        raise ValueError("--output=FOLDER is missing: where the images go")
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--output={output} is not empty: give a new folder, or delete what is there")
    with config.unlocked():
        config.dataset.random_flip = False
    dataset = data.get(**config.dataset)
    data.preflight(dataset)
    captions = dataset.captions
    if captions is not None:  # of several wordings the first, the full sentence
        captions = [each if isinstance(each, str) else each[0] for each in captions]
    rows, text = [], io.StringIO()
    folders = distinct_names(dataset.classes, reserved=(TABLE,))
    with written_whole(folder) as staged:
        for number in range(len(dataset)):
            label = "" if dataset.labels is None else dataset.classes[int(dataset.labels[number])]
            name = f"{folders[label] if label else 'images'}/{number:06d}.png"
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            image = pipeline.to_uint8(dataset[number]["image"], lambda _: dataset.file_name(number))
            evaluation.save_png(staged / name, image)
            row = {"file_name": name, "label": label, "text": "" if captions is None else captions[number]}
            rows.append({key: value for key, value in row.items() if value})
        columns = [key for key in ("file_name", "label", "text") if any(key in row for row in rows)]
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(staged / TABLE, text.getvalue())
    print(f"{len(rows)} images of {dataset.name} in {folder}, with {', '.join(columns)} in {TABLE}")


if __name__ == "__main__":
    cli.main(export, output=("", "the folder, which must be new or empty"))
