"""Names of files and folders made of names that people gave, such as those of classes.

A label may be anything that a table can hold: '..', '/abs/x', 'CON', a sentence of 300 bytes. What comes of
it here is one part of a path, which every file system takes, stays inside its folder and differs from that of
every other name.
"""

import hashlib
import re
import unicodedata

CLASS_NAME_BYTES = 80  # of a class within the name of a file or folder
FILE_NAME_BYTES = 200  # of a whole name; most file systems end at 255, and names of staging files are longer
HASH_DIGITS = 8
# Reserved by Windows, whatever follows a dot.
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$",
           *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}
# Controls, formats that nobody sees, halves of letters, private and unassigned ones, ends of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_UNSAFE = re.compile(r'[/\\:*?"<>|]')


def safe_name(name, most=CLASS_NAME_BYTES):
    """One name as a part of a path, of at most `most` bytes in UTF-8; an ordinary name stays as it is.

    Separators, and characters that Windows refuses or nobody can see, become '_'. What would be hidden, lead
    elsewhere or be lost at an end ('.', '..', '~', blanks and dots at either end) goes. A name that is too
    long is cut and ends in a hash of the whole.
    """
    shown = unicodedata.normalize("NFC", name)
    shown = "".join("_" if unicodedata.category(letter) in _UNSEEN else letter for letter in shown)
    shown = _UNSAFE.sub("_", shown).strip().strip(". ").lstrip("~").strip(". ")
    if shown.split(".")[0].strip().lower() in DEVICES:
        shown = f"_{shown}"
    if not shown.strip("_") and shown != name:
        shown = f"_{hash_of(name)}"
    if len(shown.encode()) > most:
        shown = f"{cut(shown, most - HASH_DIGITS - 1)}-{hash_of(name)}"
    return shown


def distinct_names(names, *, reserved=(), most=CLASS_NAME_BYTES):
    """{name: its `safe_name`} of distinct names, no two alike where case does not count, and none alike one
    of `reserved`.

    A name that is safe as it is keeps itself before one that had to be changed; of two that remain alike the
    later one, in the order given, ends in a hash.
    """
    names = list(dict.fromkeys(names))
    taken, found = {_folded(each) for each in reserved}, {}
    for name in sorted(names, key=lambda each: safe_name(each, most) != each):  # names that stay come first
        shown = safe_name(name, most)
        if _folded(shown) in taken:
            shown = f"{cut(shown, most - HASH_DIGITS - 1)}-{hash_of(name)}"
        taken.add(_folded(shown))
        found[name] = shown
    return {name: found[name] for name in names}


def short_name(name, most=FILE_NAME_BYTES):
    """A name that is safe already, but perhaps too long once it was put together, in at most `most` bytes."""
    return name if len(name.encode()) <= most else f"{cut(name, most - HASH_DIGITS - 1)}-{hash_of(name)}"


def cut(text, most):
    """The beginning of a text in at most `most` bytes of UTF-8, no character halved, no blank or dot at its
    end."""
    return text.encode()[:most].decode(errors="ignore").rstrip(". ")


def hash_of(name):
    """The first digits of the SHA-256 of a name."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:HASH_DIGITS]


def _folded(name):
    return unicodedata.normalize("NFC", name).casefold()
