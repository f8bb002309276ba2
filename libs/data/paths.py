"""Which files may belong to a data set: paths stay inside its folder, links included, unless a table may name any."""

import os
import re

from libs import names

from .base import did_you_mean

LINK = "is a link out of the data folder: copy what it points to, or set follow_links=True"


class Inside:
    """Tells what is wrong with a path that should name a file below `root`, or, where `anywhere`, any file."""

    def __init__(self, root, follow_links=False, anywhere=False):
        self.root, self.follow_links, self.anywhere = os.path.realpath(root), follow_links or anywhere, anywhere
        self.real_folders = {}

    def fault(self, folder, written):
        """'' or what is wrong with `written`, a path relative to `folder` that should name a file."""
        if not written:
            return "is empty"
        shown = repr(written if len(written) <= 100 else written[:97] + "...")
        if "\0" in written:
            return f"{shown} holds a NUL character"
        if "::" in written or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", written):
            return f"{shown} is a URL: expected a path relative to the data folder"
        if self.anywhere:
            written = os.path.expanduser(written)
        elif re.match(r"/|~|\\|[A-Za-z]:", written):
            return f"{shown} is absolute: expected a path relative to the data folder"
        elif ".." in re.split(r"[/\\]", written):
            return f"{shown} leaves its folder by '..': expected a path relative to the data folder"
        path = os.path.join(folder, written)
        try:
            if not os.path.lexists(path):
                return f"{shown}: no such file{_nearby(path, written)}"
            if self.escapes(path):
                return f"{shown} {LINK}"
            return "" if os.path.isfile(path) else f"{shown} is not a file"
        except (OSError, ValueError) as error:  # a name too long for the file system, a surrogate
            return f"{shown}: {error}"

    def resolve(self, folder, written):
        """`written` as the file system spells it, where it names no file there but one that looks equal:
        'läsion.png' may be composed in a table and decomposed on a disk. Unchanged otherwise."""
        if not written or "\0" in written or os.path.isabs(written) or written.startswith("~"):
            return written
        try:
            if os.path.lexists(os.path.join(folder, written)):
                return written
            parts, place = [], os.fspath(folder)
            for part in written.split("/"):
                if not os.path.lexists(os.path.join(place, part)):
                    part = names.match(part, os.listdir(place))
                parts.append(part)
                place = os.path.join(place, part)
            return "/".join(parts) if os.path.lexists(place) else written
        except OSError:
            return written

    def escapes(self, path):
        """Whether links lead from `path` out of the root, where they may not."""
        if self.follow_links:
            return False
        folder, name = os.path.split(path)
        if folder not in self.real_folders:  # once per folder: resolving asks the file system for every part
            self.real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self.real_folders[folder], name)
        real = os.path.realpath(real) if os.path.islink(real) else real
        return os.path.commonpath([real, self.root]) != self.root


def natural(name):
    """Sort key under which '10' comes after '2'."""
    return [(int(s), "") if s.isdigit() else (-1, s.lower()) for s in re.split(r"([0-9]+)", name)], name


def _nearby(path, written):
    if "\\" in written:
        return "; write '/' between folders"
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, os.listdir(folder))
    except OSError:
        return f" (nor its folder {os.path.dirname(written)!r})"
