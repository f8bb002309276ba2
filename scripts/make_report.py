"""Write the page of a run: <workdir>/report.html, from what is in the run folder.

    python scripts/make_report.py --workdir=workdir/demo
"""

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import report  # noqa: E402

flags.DEFINE_string("workdir", None, "folder of the run", required=True)


def main(_):
    try:
        print(f"page: {report.write(flags.FLAGS.workdir)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
