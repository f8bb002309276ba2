"""Write the page of a run: <workdir>/report.html, from what is in the run folder.

    python scripts/make_report.py --workdir=workdir/demo
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, report  # noqa: E402

flags.DEFINE_string("workdir", None, "folder of the run", required=True)


def main(_):
    cli.check_run(flags.FLAGS.workdir)
    print(f"page: {report.write(flags.FLAGS.workdir)}")


if __name__ == "__main__":
    cli.run(main)
