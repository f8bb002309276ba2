"""Carrying images over a dual bridge: encoded to noise under one class, decoded again to a class under guidance.

MGDM's second stage (one network, every class onto itself, under an uncertainty) and DDIB (two networks). What is made
lies in one folder that is itself a data set: <target class>/<prefix>_<source>.png and metadata.csv. Every PNG holds its
own row of the table, so that a command that was stopped goes on where it stopped.
"""

from libs.evaluation.bridge.carrying import Bridge, carry, entropy, neighbours_correlate, picture_of
from libs.evaluation.bridge.files import BELIEFS, COLUMNS, OF_GUIDANCE, claim, read_row, read_rows, unguided, write_table
from libs.evaluation.bridge.judging import check_judges, finish, judge, latent_summary, sentence, spread, summary
from libs.evaluation.bridge.opening import open_bridge, open_images, settle
from libs.evaluation.bridge.planning import EVERY, Job, plan, routes, some

__all__ = ["BELIEFS", "COLUMNS", "EVERY", "OF_GUIDANCE", "Bridge", "Job", "carry", "check_judges", "claim", "entropy", "finish",
           "judge", "latent_summary", "neighbours_correlate", "open_bridge", "open_images", "picture_of", "plan", "read_row",
           "read_rows", "routes", "sentence", "settle", "some", "spread", "summary", "unguided", "write_table"]
