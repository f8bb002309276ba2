"""Images and their texts from a CSV as people write it: a column of paths, a column of texts."""

import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path

from .folder import Folder
from .scan import look


class PathText(Folder):
    """The images that a CSV names, each with its text.

        path, Text, modality
        scans/1.png, retina with drusen, OCT
        ~/more/2.png, "fovea, with a cyst", OCT
        /data/3.png, breast with tumor, MRI

    Blanks around commas and the case of the header do not count. A text that holds a comma stands in double quotes. `captions`
    are the texts, behind their modality where the row has one: 'OCT: retina with drusen'.

    Args:
        path: the CSV, or a .jsonl with an object for each image.
        path_column: column of the images' paths, relative to the folder of the CSV, absolute, or below '~'.
        text_column, modality_column: columns of the texts and of what stands before them, '' = do not use. A modality may also
            be called 'modal', and does not have to be there.
        doubled_files: as in `folder.Folder`; 'keep', for an image may have several texts.
        missing_captions: 'error' lets no text be empty, 'skip' leaves out the images without, and logs how many.
        resolution, channels, split, require, options: as in `folder.Folder`; further columns of it may be there.
    Raises:
        ValueError: for all faults of the table at once, naming each line: a comma too many, a path that is empty or names no
            file, an empty text.
    """

    def __init__(self, path, resolution, channels=3, split="", *, path_column="path", text_column="Text",
                 modality_column="modality", require=(), doubled_files="keep", **options):
        if not path_column or not text_column:
            raise ValueError(f"path_column={path_column!r}, text_column={text_column!r}: expected the names of two columns")
        self.columns = {"file": path_column, "modality": modality_column}
        require = (*require, *({"text"} - set(require)))
        super().__init__(path, resolution, channels, split, text_column=text_column, require=require, doubled_files=doubled_files,
                         **{"unlisted_files": "ignore"} | options)
        counts = Counter(self.splits or ())
        if not split and len(counts) > 1:
            logging.warning("%s has images of several splits (%s), and split='' takes all of them, so that none are held out: a "
                            "training takes config.dataset.split=train", path,
                            ", ".join(f"{name or 'none'}: {count}" for name, count in sorted(counts.items())))

    def _find(self, path, columns, follow_links):
        table = Path(path).expanduser()
        if str(path) and table.exists() and not (table.is_file() and table.suffix.lower() in (".csv", ".jsonl")):
            raise ValueError(f"{path}: expected a .csv with the columns {self.columns['file']} and {columns.text} (or a .jsonl)")
        return look(path, dataclasses.replace(columns, **self.columns, loose=True), follow_links=follow_links,
                    ignore_files=self.ignore_files)

    def _path(self, name):
        return os.path.join(self.root, os.path.expanduser(name))
