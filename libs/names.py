"""Names as people see them: what spellings of one name that look equal have in common."""

import re
import unicodedata
from collections import defaultdict

# of Unicode decompositions that change no shape that people notice
ALIKE_TAGS = ("<noBreak>", "<compat>", "<wide>", "<narrow>")
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# Cyrillic and Greek letters, hyphens and quotes that most fonts draw as those of a keyboard
ALIKE = str.maketrans(
    "АВЕКМНОРСТХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο‐‑‒–−‘’ʼ“”", "ABEKMHOPCTXIJSaeopcyxijsABEZHIKMNOPTYXo-----'''\"\""
)


def visible(name):
    """What a person can see of a name, to compare names by; never to open a file by.

    Composed (NFC), blanks of every kind squeezed and cut at the ends, without characters that have no shape
    (zero-width ones, soft hyphens, marks of direction); full-width letters, ligatures and look-alikes of
    other alphabets as plain ones.
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split())
    if not name.isascii():
        name = "".join(
            unicodedata.normalize("NFKC", each)
            if unicodedata.decomposition(each).startswith(ALIKE_TAGS)
            else each
            for each in unicodedata.normalize("NFC", name)
        )
        name = unicodedata.normalize("NFC", INVISIBLE.sub("", name).translate(ALIKE))
    shown = (each for each in name if each.isspace() or unicodedata.category(each) not in ("Cf", "Cc"))
    return " ".join("".join(shown).split())


def escaped(name):
    """A name in quotes with whatever cannot be seen, or is not of a keyboard, written as an escape:
    'la\\u0308sion', 'P001 '."""
    return ascii(name)


def match(name, names):
    """The one of `names` that is `name`, or else the only one that looks equal; `name` itself where there is
    none."""
    names = list(names)
    if name in names:
        return name
    alike = [each for each in names if visible(each) == visible(name)]
    return alike[0] if len(alike) == 1 else name


def spellings(names):
    """{visible name: its spellings, in the order of `names`} of those that have several."""
    alike = defaultdict(dict)
    for name in dict.fromkeys(names):
        alike[visible(name)][name] = None
    return {key: list(each) for key, each in alike.items() if len(each) > 1}


def equal_numbers(names):
    """[[names]] that are one number, as spreadsheets rewrite them: ['1', '1.0', '001']."""
    equal = defaultdict(list)
    for name in dict.fromkeys(map(visible, names)):
        if re.fullmatch(r"[+-]?\d+(\.0*)?", name):
            equal[int(name.split(".")[0])].append(name)
    return [each for each in equal.values() if len(each) > 1]
