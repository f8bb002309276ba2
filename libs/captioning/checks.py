"""What a description must not be: each check is a pure function that returns '' or the reason in words.

A reason begins with the name of its check, so that a report can count: 'length: 3 words, at least 5 needed'.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_REFUSAL = re.compile(r"\b(i('m| am) (sorry|unable|not able)|i (can ?not|can't|am afraid|apologi[sz]e)|as an ai\b"
                      r"|(can ?not|can't|unable to) (see|view|open|analy[sz]e|assist|provide|describe))", re.I)
_UNIT = r"(mm|cm|nm|[µμu]m|millimet\w+|centimet\w+|micromet\w+|micron\w*|inch\w*|pixels?|px|degrees?|hu)"
_MEASURED = re.compile(rf"\d+([.,]\d+)?\s*-?{_UNIT}\b|\d[.,]\d", re.I)
LONGEST = 20_000  # characters that are kept of an answer; a model that repeats itself does not end
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Rules:
    """Which checks a description has to pass; 0, '', False and () leave one out.

    features: the list of features in the prompt, which must not come back as it is.
    count: text -> length in the tokens of a text encoder, for max_tokens; `estimated_tokens` where none is at hand.
    simplify: text -> the same in fewer words, asked before sentences are left out; None leaves sentences out only.
    forbidden: words or phrases, such as diagnoses, that must not be named.
    """

    features: str = ""
    min_words: int = 0
    max_words: int = 0
    max_tokens: int = 0
    count: Callable[[str], int] | None = None
    no_measurements: bool = False
    forbidden: tuple[str, ...] = ()
    simplify: Callable[[str], str] | None = None

    def faults(self, text: str, start: str = "") -> list[str]:
        """The reasons against `text`, [] where there are none; `start`: how it has to begin, even if that is forbidden."""
        if reason := refusal(text):
            return [reason]
        own = text if begins(text, start) else text[len(start):]
        reasons = [begins(text, start), length(text, self.min_words, self.max_words), echo(text, self.features),
                   measurement(text) if self.no_measurements else "", diagnosis(own, self.forbidden)]
        if self.max_tokens and self.count:
            reasons.append(length(text, 0, self.max_tokens, self.count, "tokens"))
        return [reason for reason in reasons if reason]

    def fit(self, text: str, start: str = "") -> str:
        """`text` short enough: without as many of its last sentences as it takes, never without the first.

        Where there is `simplify`, what it makes of the text is taken instead, unless that fails a check. `start`, how a
        description has to begin, is put before it where it was lost.
        """
        if self.simplify and self._too_long(text):
            said = tidy(self.simplify(text))
            said = self._fewer_sentences(f"{start}. {said}" if start and begins(said, start) else said)
            if not self.faults(said, start):
                return said
        return self._fewer_sentences(text)

    def _fewer_sentences(self, text):
        sentences = _SENTENCE.split(text)
        while len(sentences) > 1 and self._too_long(" ".join(sentences)):
            sentences.pop()
        return " ".join(sentences)

    def _too_long(self, text: str) -> bool:
        return bool(self.max_words and words(text) > self.max_words
                    or self.max_tokens and self.count and self.count(text) > self.max_tokens)


def estimated_tokens(text: str) -> int:
    """A guess at the tokens of a text where no tokenizer is at hand: one for each four letters begun of a word, one for each
    other sign, and one for the end."""
    return sum(-(-len(part) // 4) for part in re.findall(r"\w+|[^\w\s]", text)) + 1


def words(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


def refusal(text: str) -> str:
    """Whether a text is empty, holds no letter, or says at its beginning that it will not describe."""
    if not re.search(r"[^\W\d_]", text):
        return "refusal: empty" if not text.strip() else f"refusal: no words in {text[:40]!r}"
    found = _REFUSAL.search(text[:200].replace("’", "'"))
    return f"refusal: says {found[0]!r}" if found else ""


def begins(text: str, start: str) -> str:
    """Whether a text begins as it has to; case and spaces aside."""
    fine = plain(text).startswith(plain(start))
    return "" if fine else f"start: {text[:len(start) + 10]!r} does not begin with {start!r}"


def length(text: str, low: int, high: int, count: Callable[[str], int] = words, unit: str = "words") -> str:
    """Whether a text has low .. high words or tokens; 0 = no limit."""
    n = count(text)
    if n < low:
        return f"length: {n} {unit}, at least {low} needed"
    return f"length: {n} {unit}, at most {high} allowed" if high and n > high else ""


def echo(text: str, features: str) -> str:
    """Whether the model repeats the list of features it was asked for instead of describing them."""
    def bare(string):
        return " ".join(word for word in re.findall(r"\w+", string.lower()) if word not in ("and", "or", "the"))

    found = "," in features and f" {bare(features)} " in f" {bare(text)} "
    return f"echo: repeats the list {features!r}" if found else ""


def measurement(text: str) -> str:
    """Whether a text states lengths or decimals, which a model cannot read off an image; percentages may stand."""
    found = _MEASURED.search(re.sub(r"\d+([.,]\d+)?\s*(%|percent)", "", text))
    return f"measurement: states {found[0]!r}" if found else ""


def diagnosis(text: str, forbidden: tuple[str, ...]) -> str:
    """Whether a text names, as whole words (plural -s included), one of the phrases that must not occur."""
    found = [phrase for phrase in forbidden if re.search(rf"(?<!\w){re.escape(phrase)}s?(?!\w)", text, re.I)]
    return f"diagnosis: names {', '.join(found)}" if found else ""


def identical(texts: list[str]) -> tuple[float, str]:
    """(share of the texts that the most common one has, that text); (0, '') where each is another."""
    shown = {plain(text): text for text in texts}
    if len(shown) == len(texts):
        return 0.0, ""
    text, count = Counter(map(plain, texts)).most_common(1)[0]
    return count / len(texts), shown[text]


def same(one: str, other: str, overlap: float = 0.9) -> bool:
    """Whether two texts say the same: at least `overlap` of their distinct words are common to both."""
    first, second = set(re.findall(r"\w+", one.lower())), set(re.findall(r"\w+", other.lower()))
    return len(first & second) >= overlap * len(first | second)


def plain(text: str) -> str:
    """A text in lower case with single spaces, to compare it."""
    return " ".join(text.lower().split())


def tidy(answer: str) -> str:
    """An answer as one line: without thoughts, markdown, quotes around it, and 'Sure, here is ...:' before it.

    Halves of characters, which no file can hold, become U+FFFD; of an answer beyond 20,000 characters the beginning is kept.
    """
    answer = re.sub("[\ud800-\udfff]", "\ufffd", answer)
    text = re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.S)
    text = " ".join(re.sub(r"^\s*(?:[-*#>]+|\d+\.)\s+|\*\*|__|`", "", text, flags=re.M).split())
    text = re.sub(r"^(sure|certainly|of course|here)\b[^.:]{0,80}:\s*", "", text, flags=re.I)
    text = text[1:-1].strip() if len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”") else text
    return whole_sentences(text[:LONGEST]) if len(text) > LONGEST else text


def whole_sentences(text: str) -> str:
    """A text that was cut at a limit, without the sentence that the limit tore; as it is, where it has no other."""
    sentences = _SENTENCE.split(text.strip())
    torn = len(sentences) > 1 and not sentences[-1].endswith((".", "!", "?"))
    return " ".join(sentences[:-1]) if torn else text
