"""The architecture: a file imports only from lower floors, and nothing in the repository unpickles.

Reads every import with `ast`; nothing is executed.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FLOOR_0 = ("nn", "diffusion", "cond", "data", "metrics", "captioning", "engine")
# room of libs/ -> the other rooms it may import
MAY_IMPORT = {room: set() for room in FLOOR_0} | {
    "backbones": {"nn"},
    "codecs": {"nn"},
    "encoders": {"nn"},
    "pipeline": {"nn", "diffusion", "cond", "codecs", "backbones", "encoders"},
    "ratings": {"encoders", "metrics"},
    "evaluation": {"pipeline", "ratings", "metrics", "engine", "data"},
    "report": {"pipeline", "ratings", "metrics", "engine", "data"},
    "downstream": {"metrics", "engine", "data"},
    "extraction": {"pipeline", "engine", "data"},
    "config_options": {"backbones", "codecs", "encoders", "data", "diffusion"},
    "config_checks": {"config_options", "backbones", "codecs", "encoders", "pipeline", "diffusion", "engine", "data", "metrics"},
    "cli": {"config_options", "config_checks"},
}
IMPORTERS = {"import_module", "importlib.import_module", "__import__"}
OURS = {"libs", "scripts", "configs", "tests", "benchmarks"}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# The one file that may name an unpickler: its subclass hands out stand-ins for numpy's types and refuses all else
# (tests/test_published_features.py). `pickle.load` stays forbidden there too.
UNPICKLER = (pathlib.PurePosixPath("libs/data/restricted.py"), "pickle.Unpickler")
# slow to import or optional, so imported inside the functions of libs/ that need them
HEAVY = {"transformers", "diffusers", "peft", "timm", "matplotlib", "torchvision.models"}


def sources() -> list[pathlib.Path]:
    """Every Python file of the project but the tests."""
    folders = (ROOT / name for name in ("libs", "scripts", "configs", "benchmarks"))
    return sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def imports(tree: ast.AST, path: pathlib.PurePath) -> list[str]:
    """Absolute dotted names of all that a file at `path` imports: modules, and names taken from modules."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = list(path.parts[:-node.level]) if node.level else []
            base = ".".join(package + ([node.module] if node.module else []))
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and called(node) in IMPORTERS:
            names += [argument.value for argument in node.args[:1]
                      if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
    return names


def called(node: ast.Call) -> str:
    """The dotted name that a call spells out, '' where it is computed."""
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def room(parts: tuple[str, ...]) -> str:
    """('libs', 'nn', 'attention.py') -> 'nn'; ('libs', 'cond.py') -> 'cond'."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else ""


def floor_faults(text: str, path: pathlib.PurePath) -> list[str]:
    """What a file of ours imports that its floor does not allow."""
    faults = []
    stems = {script.stem for script in ROOT.glob("*.py")}
    top = path.parts[0] if len(path.parts) > 1 else "script"
    own = room(path.parts) if top == "libs" else ""
    if top == "libs" and own not in MAY_IMPORT and own != "__init__":
        return [f"libs/{own} has no floor: move it into a room that has one, or give it one in this table"]
    below = MAY_IMPORT.get(own, set())
    for name in imports(ast.parse(text), path):
        parts = tuple(name.split("."))
        if parts[0] == "libs":
            target = room(parts)
            if top == "configs":
                faults.append(f"a config imports {name}")
            elif target not in MAY_IMPORT:
                faults.append(f"{name} is no room of libs/")
            elif top == "libs" and target != own and target not in below:
                faults.append(f"libs/{own} may import {sorted(below) or 'nothing of ours'}, not {name}")
        elif parts[0] == "configs":
            if top == "libs":
                faults.append(f"libs/{own} imports the config {name}")
        elif top == "benchmarks" and parts[:2] == ("benchmarks", "timing"):
            continue  # how all of them time
        elif parts[0] in OURS or parts[0] in stems:
            faults.append(f"{path} imports {name}: only rooms of libs/ may be imported")
    return faults


def safety_faults(text: str, path: pathlib.PurePath) -> list[str]:
    """Ways to unpickle what a stranger wrote; in libs/ also prints and heavy imports at module level."""
    tree = ast.parse(text)
    in_libs = path.parts[0] == "libs"
    faults = [f"line {node.lineno}: {what}" for node in ast.walk(tree) for what in _unsafe(node, in_libs)]
    faults += [f"imports {name}" for name in imports(tree, path) if name.split(".")[0] in PICKLERS and (path, name) != UNPICKLER]
    if in_libs:
        faults += [f"imports {name} at module level" for name in imports(_without_functions(tree), path)
                   if any(f"{name}.".startswith(f"{heavy}.") for heavy in HEAVY)]
    return faults


def _unsafe(node: ast.AST, in_libs: bool) -> list[str]:
    faults = []
    if isinstance(node, ast.ImportFrom) and node.module == "torch" and "load" in {a.name for a in node.names}:
        faults.append("load taken from torch: spell torch.load, which this test looks for")
    if isinstance(node, ast.Import) and any(a.name == "torch" and a.asname for a in node.names):
        faults.append("torch under another name: spell torch.load, which this test looks for")
    if isinstance(node, ast.Attribute) and node.attr == "read_pickle":
        faults.append("read_pickle")
    if isinstance(node, ast.Call):
        given = {word.arg: word.value for word in node.keywords}
        if called(node) == "torch.load" and not _is(given.get("weights_only"), True):
            faults.append("torch.load without weights_only=True")
        if "allow_pickle" in given and not _is(given["allow_pickle"], False):
            faults.append("allow_pickle is not False")
        if called(node) == "print" and in_libs:
            faults.append("print in libs/")
    return faults


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _without_functions(tree: ast.AST) -> ast.AST:
    """The tree without what runs only when a function is called."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None
        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    return Drop().visit(ast.parse(ast.unparse(tree)))


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=named)
def test_imports_only_from_lower_floors(path):
    assert not floor_faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=named)
def test_loads_safely(path):
    assert not safety_faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT))


def test_floors_have_no_cycle():
    """Rooms can be stacked: each imports only rooms already placed below it."""
    placed, waiting = set(), dict(MAY_IMPORT)
    while waiting:
        ready = {name for name, below in waiting.items() if below <= placed}
        assert ready, f"these rooms import each other: {sorted(waiting)}"
        placed |= ready
        waiting = {name: below for name, below in waiting.items() if name not in ready}


FORBIDDEN = [
    ("libs/nn/a.py", "import libs.data"),
    ("libs/nn/a.py", "from libs import data"),
    ("libs/nn/a.py", "from libs.diffusion.schedule import schedule"),
    ("libs/nn/a.py", "from ..data import loader"),
    ("libs/nn/a.py", "from .. import data"),
    ("libs/nn/a.py", "def f():\n    from libs import engine"),
    ("libs/nn/deep/a.py", "from ...engine import fit"),
    ("libs/cond.py", "from . import data"),
    ("libs/backbones/a.py", "from libs import cond"),
    ("libs/codecs/a.py", "from libs.backbones import uvit"),
    ("libs/pipeline.py", "from libs import engine"),
    ("libs/evaluation.py", "from libs import report"),
    ("libs/evaluation/a.py", "import importlib\nimportlib.import_module('libs.diffusion')"),
    ("libs/report.py", "from libs.backbones import get"),
    ("libs/engine/a.py", "import configs.common"),
    ("libs/data/a.py", "import scripts.tool"),
    ("libs/surprise.py", "import math"),
    ("scripts/a.py", "from scripts import b"),
    ("scripts/a.py", "from . import b"),
    ("scripts/a.py", "import tests.conftest"),
    ("train_x.py", "from libs import surprise"),
    ("configs/a.py", "from libs import data"),
]
ALLOWED = [
    ("libs/nn/a.py", "import math, torch.nn\nfrom . import b\nfrom .b import c\nfrom libs.nn import d"),
    ("libs/nn/deep/a.py", "from .. import b\nfrom ..b import c"),
    ("libs/backbones/a.py", "import libs.nn\nfrom ..nn import attention\nfrom libs.backbones.b import c"),
    ("libs/pipeline.py", "from libs import diffusion, cond, codecs, backbones, encoders"),
    ("libs/evaluation.py", "from libs import pipeline, ratings, metrics, engine, data"),
    ("scripts/a.py", "from libs import cli, data, evaluation"),
    ("train_x.py", "from libs.backbones import get\nfrom configs import common"),
    ("configs/a.py", "from configs import common\nfrom configs.common import lr"),
]


@pytest.mark.parametrize("path, text", FORBIDDEN)
def test_finds_forbidden_imports(path, text):
    assert floor_faults(text, pathlib.PurePosixPath(path))


@pytest.mark.parametrize("path, text", ALLOWED)
def test_allows_the_table(path, text):
    assert not floor_faults(text, pathlib.PurePosixPath(path))


UNSAFE = ["import pickle", "from pickle import loads", "def f():\n    import dill", "torch.load(path)",
          "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
          "from torch import load", "import torch as t", "pd.read_pickle(path)",
          "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)", "print('x')",
          "import transformers", "from diffusers import UNet2DModel", "from torchvision import models",
          "class A:\n    import peft", "if True:\n    import matplotlib.pyplot",
          "import torchvision.models as m"]
SAFE = ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)",
        "def f():\n    import peft", "class A:\n    def f(self):\n        from transformers import AutoModel",
        "from torchvision import io", "logger.info('print')"]


@pytest.mark.parametrize("text", UNSAFE)
def test_finds_unsafe_code(text):
    assert safety_faults(text, pathlib.PurePosixPath("libs/data/a.py"))


@pytest.mark.parametrize("text", SAFE)
def test_allows_safe_code(text):
    assert not safety_faults(text, pathlib.PurePosixPath("libs/data/a.py"))


def test_one_file_may_restrict_an_unpickler_and_no_more():
    path, name = UNPICKLER
    assert not safety_faults("from pickle import Unpickler", path) and name == "pickle.Unpickler"
    assert safety_faults("from pickle import Unpickler", path.with_name("folder.py"))
    for text in ("import pickle", "from pickle import loads", "from pickle import Unpickler, load", "import dill"):
        assert safety_faults(text, path)


def test_scripts_may_print_and_import_at_the_top():
    assert not safety_faults("import transformers\nprint(1)", pathlib.PurePosixPath("scripts/a.py"))
    assert safety_faults("import pickle", pathlib.PurePosixPath("scripts/a.py"))
