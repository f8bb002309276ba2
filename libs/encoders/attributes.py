"""Attribute words in descriptions: found, and exchanged for others."""

import functools
import re


def read_attributes(text: str, words: dict) -> dict[str, int]:
    """{attribute: position of its phrase in `text`, or -1 where none is found}.

    Phrases count as whole words, whatever their case; 'pigmented' is not found in 'non-pigmented'. Longer phrases come
    first, over all attributes, and what one phrase has used is not used again: 'light brown' leaves no 'brown' to
    another. Of several phrases of an attribute the first in the text counts.

    Args:
        words: {attribute: phrases}, such as {'size': ('small', 'large'), 'colour': ('red', 'light brown')}.
    """
    first = {}
    for _, _, attribute, position in locate(text, words):
        first.setdefault(attribute, position)
    return {attribute: first.get(attribute, -1) for attribute in words}


def locate(text: str, words: dict) -> list[tuple[int, int, str, int]]:
    """The phrases in `text`, by the rules of `read_attributes`: [(start, end, attribute, position of the phrase)]."""
    wanted = {}  # a phrase may belong to several attributes
    for pattern, attribute, position in _patterns(frozen(words)):
        for match in pattern.finditer(text):
            wanted.setdefault(match.span(), []).append((attribute, position))
    found, used = [], set()
    for start, end in sorted(wanted, key=lambda span: (span[0] - span[1], span[0])):
        if used.isdisjoint(range(start, end)):
            used.update(range(start, end))
            taken = {attribute for _, _, attribute, _ in found}
            found.append((start, end, *min(wanted[start, end], key=lambda each: each[0] in taken)))
    return sorted(found)


def exchange(text: str, words: dict, new: dict) -> str:
    """`text` with other phrases: new[attribute] is the position of the phrase that replaces the one found.

    Where the attribute's first phrase stands several times, each is replaced. The article before it and a capital follow;
    the rest stays as it is.
    """
    old = read_attributes(text, words)
    for start, end, attribute, position in reversed(locate(text, words)):
        if attribute in new and position == old[attribute] != new[attribute]:
            phrase = words[attribute][new[attribute]]
            phrase = phrase[:1].upper() + phrase[1:] if text[start].isupper() else phrase
            text = _with_article(text[:start], phrase) + phrase + text[end:]
    return text


def frozen(words: dict) -> tuple:
    """The attributes and their phrases as a key for caches."""
    return tuple((attribute, tuple(phrases)) for attribute, phrases in words.items())


@functools.lru_cache(maxsize=16)
def _patterns(words):
    return [(_whole(phrase), attribute, position)
            for attribute, phrases in words for position, phrase in enumerate(phrases) if phrase.strip()]


def _whole(phrase):
    inner = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<![\w-]){inner}(?![\w-])", re.IGNORECASE)


def _with_article(before, phrase):
    right = "an" if re.match(r"(?!uni|eu|one)[aeiou]", phrase, re.IGNORECASE) else "a"
    return re.sub(r"\b([Aa])n?(\s+)$", lambda at: (right.capitalize() if at[1] == "A" else right) + at[2], before)
