"""The questions that lead a multimodal language model to a description: editable files in assets/prompts/.

A file `<name>.toml` holds one procedure:

    domain = "dermoscopic image of a skin lesion"
    start = ""                      # how each description has to begin; '' = as the model likes
    features = "shape, colour, size, texture"
    [labels]                        # optional: the label in the data -> what the model is told
    NV = "a melanocytic nevus"
    [[steps]]                       # in this order; the last answer is the description
    name = "impression"
    image = true                    # false: the model gets the text only, and is asked once per distinct text
    prompt = "Look at this {domain}. ..."

A prompt may use {label}, {domain}, {start}, {features} and the answer of any earlier step under its name.
"""

import difflib
import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "assets" / "prompts"
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Step:
    """One question; `image`: whether the model sees the image with it."""

    name: str
    prompt: str
    image: bool = True


@dataclass(frozen=True)
class Procedure:
    """The steps of one prompt file. `version` is '<name>@<hash of the file>': another text, another version."""

    version: str
    steps: tuple[Step, ...]
    domain: str = ""
    start: str = ""
    features: str = ""
    labels: dict = field(default_factory=dict)

    @property
    def uses_label(self) -> bool:
        """Whether a question, or the required start, names the class."""
        return any("{label}" in text for text in (self.start, *(step.prompt for step in self.steps)))

    def fill(self, text: str, label: str, answers: dict[str, str]) -> str:
        """`text` with every {place} replaced, in one pass: braces inside an answer stay as they are."""
        label = self.labels.get(label, label)
        known = {"label": label, "domain": self.domain, "features": self.features, **answers}
        known["start"] = self.start.replace("{label}", label)
        return _PLACE.sub(lambda match: known[match[1]], text)

    def start_for(self, label: str) -> str:
        """How the description of an image of this class has to begin; '' = as it likes."""
        return self.fill(self.start, label, {})

    def label_in(self, text: str) -> str:
        """The class that a simple caption names, 'polyps' of 'An endoscopic image of polyps.'; '' where it begins otherwise."""
        before, found, after = self.start.partition("{label}")
        text, after = " ".join(text.split()).rstrip(" ."), after.rstrip(" .")
        if not found or not text.lower().startswith(before.lower()) or not text.lower().endswith(after.lower()):
            return ""
        return text[len(before):len(text) - len(after)].strip()


def load(name: str) -> Procedure:
    """The procedure `name` of assets/prompts/, or of the .toml file of that path.

    Raises ValueError that names the file and what is wrong with it.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = path.read_text(encoding="utf-8")
        found = tomllib.loads(content)
    except FileNotFoundError:
        names = sorted(file.stem for file in FOLDER.glob("*.toml"))
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"prompts {name!r}: no file {path}; known: {', '.join(names)}"
                         f"{f'; did you mean {close[0]!r}?' if close else ''}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    fault = _fault(found)
    if fault:
        raise ValueError(f"{path}: {fault}")
    version = f"{path.stem}@{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Procedure(version, tuple(Step(**step) for step in found.pop("steps")), **found)


def _fault(found: dict) -> str:
    """'' or what is wrong with a parsed prompt file."""
    kinds = {"domain": str, "start": str, "features": str, "labels": dict, "steps": list}
    for key, value in found.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            return f"{key!r} is not one of domain, start, features (texts), labels (a table), steps (a list of tables)"
    known = {"label", "domain", "start", "features"}
    if any(not isinstance(value, str) for value in found.get("labels", {}).values()):
        return "labels are texts"
    if set(_PLACE.findall(found.get("start", ""))) - {"label"}:
        return "start may use {label} only"
    if not found.get("steps"):
        return "no [[steps]]"
    for step in found["steps"]:
        if not (isinstance(step, dict) and {"name", "prompt"} <= step.keys() <= {"name", "prompt", "image"}
                and isinstance(step["name"], str) and isinstance(step["prompt"], str)
                and isinstance(step.get("image", True), bool)):
            return "a step has name and prompt (texts) and perhaps image (true or false), nothing else"
        unknown = set(_PLACE.findall(step["prompt"])) - known
        if unknown:
            return f"step {step['name']!r} uses {sorted(unknown)}; known at that point: {sorted(known)}"
        if not re.fullmatch(r"\w+", step["name"]) or step["name"] in known:
            return f"step name {step['name']!r}: letters, digits and _, each name once, none of label, domain ..."
        known.add(step["name"])
    return "" if found["steps"][-1].get("image", True) else "the last step must see the image"
