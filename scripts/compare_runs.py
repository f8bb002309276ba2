"""One page that compares several runs of any family: <out>/comparison.html, with the numbers as .json, .csv, .md and .tex.

    python scripts/compare_runs.py --workdirs=workdir/dit,workdir/uvit,workdir/ldm --out=workdir/comparison
    python scripts/compare_runs.py --workdirs=workdir/dit,workdir/uvit --names=DiT,U-ViT --name=final

It only reads: evaluate each run before, with the same number of images and the same seed. What makes the comparison unfair is
said at the top of the page and here, with the commands that mend it.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, report  # noqa: E402

flags.DEFINE_list("workdirs", None, "folders of the runs, with commas between them", required=True)
flags.DEFINE_string("out", "workdir/comparison", "folder of the page")
flags.DEFINE_list("names", [], "what to call the runs, in the same order; by default their folders' names")
flags.DEFINE_string("name", "", "the evaluation of each run, <workdir>/eval/<name>; by default the newest that all share")
flags.DEFINE_string("title", "", "heading of the page")


def main(argv):
    options = flags.FLAGS
    for workdir in options.workdirs:
        cli.check_run(workdir, flag="workdirs", readable=True)
    page, faults = report.write_comparison(options.workdirs, options.out, names=options.names, name=options.name,
                                           title=options.title)
    for fault in faults:
        print("\n  ".join([f"warning: {fault['text']}", *fault["commands"]]))
    print(f"page: {page}")


if __name__ == "__main__":
    cli.run(main)
