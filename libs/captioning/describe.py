"""From an image to its description: the steps of a procedure, again until the checks are passed."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from PIL import Image

from . import checks
from .models import Unanswered
from .prompts import Procedure
from .table import Caption, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """An image to describe: its name in the table, its label ('' = unknown), and how to read it."""

    file_name: str
    label: str
    read: Callable[[], Image.Image]


class Describer:
    """Asks `model` the questions of `procedure`; safe to use from several threads.

    Answers depend on (seed, file name, step, attempt) and the model alone, not on the order of the images.
    Questions without image are asked once per distinct text; `known` rows of an earlier session answer theirs.

    attempts: how often an image is described at most until the description passes the `rules`.
    """

    def __init__(self, model, procedure: Procedure, rules: checks.Rules, *, attempts: int = 3, seed: int = 0,
                 known: Iterable[Caption] = ()):
        if attempts < 1:
            raise ValueError(f"config.checks.attempts is {attempts}; expected 1 or more")
        self.model, self.procedure, self.rules, self.attempts, self.seed = model, procedure, rules, attempts, seed
        self._answers, self._asking, self._lock = {}, {}, threading.Lock()
        for row in known:
            if (row.model, row.prompt) == (model.name, procedure.version):
                self._remember(row)

    def describe(self, item: Item) -> Caption:
        """The row for an image: with its text, or with '' and the checks that its last description failed."""
        attempt, answers = 1, {}
        try:
            image = item.read()
        except (OSError, ValueError) as error:
            return self._row(item, 0, {}, "", [f"image: {error}"])
        for attempt in range(1, self.attempts + 1):
            try:
                answers = self.ask(item, image, attempt)
            except Unanswered as error:
                return self._row(item, attempt, {}, "", [f"unanswered: {error}"])
            text, reasons = self._judge(item, answers)
            if text:
                break
        return self._row(item, attempt, answers, text, reasons)

    def ask(self, item: Item, image: Image.Image, attempt: int) -> dict[str, str]:
        """{step: tidied answer} of one pass through the procedure, unchecked. Raises Unanswered."""
        answers = {}
        for step in self.procedure.steps:
            prompt = self.procedure.fill(step.prompt, item.label, answers)
            if step.image:
                seed = self._seed(item.file_name, step.name, attempt)
                answers[step.name] = checks.tidy(self.model.ask(prompt, image, seed=seed, retry=attempt > 1))
            else:
                answers[step.name] = self._ask_once(prompt)
        return answers

    def _judge(self, item, answers):
        """(the text, notes) where it passes, else ('', the reasons)."""
        *before, last = answers.values()
        reasons = [f"{reason} (step {name!r})" for name, answer in zip(answers, before, strict=False)
                   if (reason := checks.refusal(answer))]
        start = self.procedure.start_for(item.label)
        text = self.rules.fit(last, start)
        reasons += self.rules.faults(text, start)
        if reasons:
            return "", reasons
        how = "shortened" if last.startswith(text) else "simplified"
        return text, [] if text == last else [f"{how}: from {checks.words(last)} to {checks.words(text)} words"]

    def _ask_once(self, prompt):
        with self._lock:
            asking = self._asking.setdefault(prompt, threading.Lock())
        attempt = 0
        with asking:
            while prompt not in self._answers:
                attempt += 1
                answer = checks.tidy(self.model.ask(prompt, seed=self._seed(prompt, attempt), retry=attempt > 1))
                reason = checks.refusal(answer)
                if not reason:
                    self._answers[prompt] = answer
                elif attempt == self.attempts:
                    raise Unanswered(f"{reason} (to {prompt[:80]!r})")
        return self._answers[prompt]

    def _remember(self, row):
        """Answers without image from a row of the table, under the questions as they were asked."""
        for step in self.procedure.steps:
            if step.name not in row.answers:
                return
            if not step.image and not checks.refusal(row.answers[step.name]):
                self._answers.setdefault(self.procedure.fill(step.prompt, row.label, row.answers), row.answers[step.name])

    def _row(self, item, attempts, answers, text, reasons):
        said = " | ".join(" ".join(reason.split()).replace(" | ", " / ") for reason in reasons)
        return Caption(item.file_name, text, item.label, self.model.name, self.procedure.version, attempts, answers, said)

    def _seed(self, *parts):
        return int.from_bytes(hashlib.sha256(repr((self.seed, *parts)).encode()).digest()[:4]) >> 1


def caption(items: list[Item], describer: Describer, table: Table, *, threads: int = 1, on_fail: str = "mark",
            give_up: int = 10, max_identical: float = 0.5, done: Callable[[Caption], None] = lambda row: None,
            progress: bool = True):
    """Describe `items`; each row is in the table before `done` is called with it, in the order in which they get done.

    Where it is interrupted, questions in flight are still answered and kept.

    Args:
        threads: images in work at a time.
        on_fail: 'mark' keeps an image without text and goes on, 'stop' ends at the first.
        give_up: so many images in a row without any answer end the work; 0 never.
        max_identical: a larger share of equal texts is warned of, with on_fail 'stop' ends the work; looked at when
            there are 20, 100 and 1000 texts.
    Raises:
        ValueError: where the work ends early; what was done is in the table.
    """
    from tqdm import tqdm
    if on_fail not in ("mark", "stop"):
        raise ValueError(f"config.checks.on_fail is {on_fail!r}; known: mark, stop")

    def work(item):
        row = describer.describe(item)
        table.append(row)
        return row

    silent, texts = 0, []
    pool = ThreadPoolExecutor(threads)
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), unit="image", disable=not (progress and items)):
            row = future.result()
            done(row)
            silent = silent + 1 if "unanswered" in row.failed_for else 0
            if give_up and silent >= give_up:
                raise ValueError(f"{silent} images in a row got no answer ({row.checks}); the same command goes on later")
            if row.failed_for and on_fail == "stop":
                raise ValueError(f"{row.file_name}: {row.checks} (after {row.attempts} attempts; "
                                 "--config.checks.on_fail=mark keeps such images without text and goes on)")
            texts += [row.text] if row.text else []
            if row.text and len(texts) in (20, 100, 1000):
                _same_for_all(texts, max_identical, on_fail)
    finally:
        if not all(future.done() for future in futures):
            logger.info("ending: questions that are out are still waited for")
            describer.model.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _same_for_all(texts, max_identical, on_fail):
    share, text = checks.identical(texts)
    if share > max_identical:
        message = f"{share:.0%} of {len(texts)} images got the same text: {text[:100]!r}"
        if on_fail == "stop":
            raise ValueError(message)
        logger.warning(message)


def image_dependence(describer: Describer, items: list[Item], rows: dict[str, Caption], *, threads: int = 1) -> dict:
    """Whether descriptions follow the image: asked again with a grey image, and with another image of the sample.

    Label, seed and attempt are those of the row; only the image differs. The other image is of another class where
    the sample has one. Images whose row has no text, or that of another model or prompt, are left out.

    Returns {'blank' | 'shuffled': {'n', 'same' (how many said the same), 'share', 'examples' (up to 3)}}.
    """
    asked, found = (describer.model.name, describer.procedure.version), {}
    usable = [item for item in items if (row := rows[item.file_name]).text and (row.model, row.prompt) == asked]

    def unchanged(item, read):
        """Whether the text stays the same; None without an answer."""
        row = rows[item.file_name]
        try:
            *_, text = describer.ask(item, read(), row.attempts).values()
        except Unanswered as error:
            logger.warning("image dependence: %s: %s", item.file_name, error)
            return None
        return checks.same(row.text, describer.rules.fit(text, describer.procedure.start_for(item.label)))

    blank = [lambda item=item: Image.new("RGB", item.read().size, (128, 128, 128)) for item in usable]
    for kind, others in (("blank", blank), ("shuffled", _others(usable))):
        with ThreadPoolExecutor(threads) as pool:
            stayed = list(pool.map(unchanged, usable, others))
        examples = [{"file_name": item.file_name, "text": rows[item.file_name].text}
                    for item, same in zip(usable, stayed, strict=False) if same]
        n = len(stayed) - stayed.count(None)
        found[kind] = {"n": n, "same": len(examples), "share": len(examples) / n if n else 0.0, "examples": examples[:3]}
    return found


def _others(items):
    """How to read, for each item, the image of another one: of another label where there is one; [] for one item."""
    others = [items[k + 1:] + items[:k] for k in range(len(items))] if len(items) > 1 else []
    return [next((other for other in rest if other.label != item.label), rest[0]).read
            for item, rest in zip(items, others, strict=False)]
