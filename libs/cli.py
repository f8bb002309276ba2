# READ /work/wt/NOTICE.md (from the lead) FIRST, then delete this line.
"""The command line of every script: --config, --config.a.b=value, --workdir, --nnet_path.

A script ends with `cli.main(train)`; `train(config, workdir)` gets a locked, validated config. One without a config defines its
flags with absl and ends with `cli.run(main)`. What a user did wrong ends in one line that names the thing, not in a traceback
(`--verbosity=1` shows it).
"""

import ast
import difflib
import errno
import hashlib
import importlib.util
import inspect
import json
import linecache
import logging
import os
import re
import shutil
import struct
import sys
import textwrap
import traceback
import zipfile
import zlib
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from libs import config_checks, config_options

ROOT = Path(__file__).parent.parent
SETTINGS = "SETTINGS"  # name of a training script's tuple of what it reads of config.train
SECTIONS = ("dataset", "nnet", "codec", "encoder", "schedule", "denoiser", "train", "optimizer", "lr_scheduler",
            "sample", "metrics")
LARGEST_NUMBER = 10**9  # of images or the like, that a flag takes
LEAST_SIMILAR = 0.5  # of a folder's name to the one that was typed, to be suggested

_JSON_CONFIG = ROOT / "configs" / "from_run.py"
_TEXTS = ("prompt", "label", "counts", "title", "add_rater", "names")  # flags that are no paths
_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "--helpfull", "-helpfull", "--helpxml")

# Errors whose message is written for the user; others may be ours, and say where to look.
_WRITTEN_FOR_USERS = (ValueError, OSError, FloatingPointError, ImportError)
# Errors of files that do not hold what they should, none of which names its file.
_DAMAGED = (UnicodeError, json.JSONDecodeError, zipfile.BadZipFile, struct.error, EOFError, zlib.error)
_DAMAGED_BY_NAME = ("SafetensorError", "UnpicklingError", "ReadError")  # of packages that are not imported here

_FLAGS = {
    "workdir": "folder of the run; by default workdir/<config>/<overrides, or default>",
    "nnet_path": "weights: a .pth or .safetensors file, a <step>.ckpt folder or a run folder; by default the best "
                 "checkpoint of --workdir",
}


def main(script, **own_flags):
    """Parse the command line and call `script`.

    Args:
        script: script(config, workdir[, nnet_path][, <own flag> ...]); its parameter names say which flags it takes.
        own_flags: {flag name: (default, help)} that only this script has; a str, int or bool default gives the type.
            (default, help, least) refuses a smaller number on the command line; the default may be smaller, and mean something
            else.
    """
    takes = [name for name in inspect.signature(script).parameters if name != "config"]
    least = {}
    for name in takes:
        if name in own_flags:
            default, text, *limit = own_flags[name]
            kind = next(kind for kind in (bool, int, str) if isinstance(default, kind))  # a bool is an int as well
            define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string}[kind]
            define(name, default, text)
            least |= {name: limit[0]} if limit else {name: 0} if name == "seed" else {}
        else:
            flags.DEFINE_string(name, "", _FLAGS[name])
    config_flags.DEFINE_config_file("config", None, "the experiment, a file in configs/", lock_config=True)
    line = _ConfigLine(script, takes)

    def call(argv):
        config, typed = flags.FLAGS.config, dict(flags.FLAGS["config"].override_values)
        for name, limit in least.items():
            value = flags.FLAGS[name].value
            if flags.FLAGS[name].present and value < limit:
                raise ValueError(f"--{name}={value}: a whole number of at least {limit} is needed")
            if name != "seed" and value > LARGEST_NUMBER:
                raise ValueError(f"--{name}={value}: a whole number of at most {LARGEST_NUMBER} is needed")
        log_later = line.settle(config, typed)
        values = {name: flags.FLAGS[name].value for name in takes}
        if "workdir" in values and not values["workdir"]:
            values["workdir"] = default_workdir(flags.FLAGS["config"])
        config_options.log_implied(log_later)
        script(config, **values)

    _run(call, line)


def run(script):
    """Parse the command line of a script without a config, whose flags are defined, and call script(argv); errors as of `main`."""
    _run(script)


def _run(call, line=None):
    _keep_printing()

    def parse(argv):
        try:
            joined = join_values(argv)
            # config_flags reads the overrides from there
            sys.argv = line.prepare(joined) if line and not set(_HELP) & set(joined) else joined
            return flags.FLAGS(sys.argv)
        except flags.Error as error:
            sys.exit(f"error: {_describe_flag_error(error)}")
        except Exception as error:
            sys.exit(f"error: {describe_error(error)}")

    def guarded(argv):
        _set_up_log(line and line.config)
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value")
            call(argv)
        except Exception as error:
            logging.debug("", exc_info=True)
            rank = os.environ.get("RANK")
            text = describe_error(error, line and line.config, line and line.file)
            sys.exit(f"error{f' on process {rank}' if rank else ''}: {text}")

    app.run(guarded, flags_parser=parse)


class _ConfigLine:
    """The config of a command line: read, completed before absl sets the overrides, settled and checked after."""

    def __init__(self, script, takes):
        self.script, self.takes = script, takes
        self.settings = tuple(getattr(script, "__globals__", {}).get(SETTINGS, ()))
        self.file, self.config, self.former = "", None, None  # the last as the file has it
        self.unknown = {}  # {path: what is wrong} of options that nothing takes, told with the other faults

    def prepare(self, argv):
        """The arguments with --config, which is that of the run where only --workdir is given; absl gets the completed config."""
        argv = self._with_config(argv)
        files = list(dict.fromkeys(part.split("=", 1)[1] for part in argv[1:] if _name(part) == "config"))
        if len(files) > 1:
            raise ValueError(f"--config is given twice, as {' and as '.join(files)}: leave one of them out")
        self.file = files[0]
        config = read_config(self.file)
        for section in missing_sections(self.script, config):
            raise ValueError(_describe_missing(f"config.{section}", self.file))
        config_options.restore_zeros(config)
        argv = _join_overrides(argv, config)
        typed = _overrides(argv)
        self.former = config.copy_and_resolve_references()
        settings = (*config_checks.LOOP_SETTINGS, *self.settings) if self.settings else ()
        self.unknown = config_options.complete(config, typed, settings)
        config.lock()
        flags.FLAGS["config"].parser.parse = lambda path: config
        self.config = config
        return [part for part in argv if not _overrides(["", part]).keys() & self.unknown.keys()]

    def settle(self, config, typed):
        """Replace `~`, and what follows from other options; check everything. Returns what was implied, in words."""
        faults = list(self.unknown.values())
        with config.unlocked():
            config_options.expand_homes(config)
            find_assets(config)
            values = config_checks.value_faults(config) + config_checks.differing_types(self.former, config)
            if values:  # whatever follows computes with these
                config_checks.fail(faults + values)
            implied, more = config_checks.gather(config_options.imply, config, typed)
            faults += more + config_checks.gather(config_options.settle_sizes, config)[1]
        config_checks.check_whole(config, self.settings, sized="workdir" in self.takes, faults=faults)
        return implied

    def _with_config(self, argv):
        if any(_name(part) == "config" for part in argv[1:]):
            return argv
        workdir = next((part.split("=", 1)[1] for part in reversed(argv[1:]) if _name(part) == "workdir"), "")
        saved = Path(workdir) / "config.json"
        if workdir and saved.is_file():
            return [argv[0], f"--config={_JSON_CONFIG}:{saved}", *argv[1:]]
        if not workdir:
            give = ", or give the --workdir of a run" if "workdir" in self.takes else ""
            raise ValueError(f"--config=FILE is missing: name a file in configs/{give}")
        raise ValueError(describe_missing_run(workdir, begins="nnet_path" not in self.takes))


def describe_missing_run(workdir, *, begins=False, weights=True, flag="workdir"):
    """What is wrong with a --workdir without a config.json, the nearest run beside it, and what to do.

    Args:
        workdir: the folder, as it was typed.
        begins: whether the script may begin a run there.
        weights: whether the script takes --nnet_path.
        flag: the option that names the folder.
    """
    folder = Path(workdir)
    fault = f"--{flag}={workdir} " + (
        "does not exist" if not folder.exists() else
        "holds no config.json, so that it is no run" if folder.is_dir() else "is no folder")
    near = nearest_run(folder)
    hint = f'. Did you mean "{near}"?' if near else ""
    if begins:
        return f"{fault}{hint or '.'} To begin a run there --config=FILE is missing: name a file in configs/"
    give = "give the folder of a run"
    give += ", or its weights by --nnet_path together with --config=FILE" if weights else ""
    return f"{fault}{hint or f': {give}'}"


def check_run(workdir, *, flag="workdir", readable=False):
    """Raise ValueError unless a folder holds what a run of ours writes down; for scripts without a config.

    A run whose config.json was lost still has its records, and counts.

    Args:
        workdir: the folder, as it was typed.
        flag: the option that names it.
        readable: whether a config.json has to be whole.
    """
    if readable and (Path(workdir) / "config.json").is_file():
        check_json(Path(workdir) / "config.json")
    records = ("config.json", "run.json", "metrics.jsonl", "eval")
    if not any((Path(workdir) / name).exists() for name in records):
        raise ValueError(describe_missing_run(workdir, weights=False, flag=flag))


def nearest_run(folder):
    """The run folder whose name is nearest to a mistyped one, as a string; '' where none is near."""
    folder = Path(folder)
    parent = next((each for each in folder.parents if each.is_dir()), None)
    if parent is None:
        return ""
    if parent != folder.parent:  # a folder above is mistyped, too
        rest = folder.relative_to(parent)
        names = difflib.get_close_matches(rest.parts[0], [each.name for each in parent.iterdir() if each.is_dir()], 1, LEAST_SIMILAR)
        folder = parent.joinpath(*names, *rest.parts[1:])
        if not names or not folder.parent.is_dir():
            return ""
        if (folder / "config.json").is_file():
            return str(folder)
    runs = [each.name for each in folder.parent.iterdir() if (each / "config.json").is_file()]
    above = [each for each in folder.parents if each != Path(".")]
    around = next((each for each in above if (each / "config.json").is_file()), None)
    if around is not None and folder.exists():  # a file or folder of a run
        return str(around)
    if folder.is_dir():
        inside = sorted(each.name for each in folder.iterdir() if (each / "config.json").is_file())
        if inside:
            return str(folder / inside[0])
    names = difflib.get_close_matches(folder.name, runs, 1, LEAST_SIMILAR)
    return str(folder.with_name(names[0])) if names else ""


def read_config(path):
    """The unlocked ConfigDict of 'FILE.py' or 'FILE.py:argument'.

    Raises:
        ValueError: the file is missing, is no config, or the config.json that it reads is damaged.
    """
    file, _, argument = path.partition(":")
    if argument and Path(file).name == _JSON_CONFIG.name:
        check_json(argument)
    if not Path(file).is_file() and (ROOT / file).is_file():
        file = str(ROOT / file)  # called from another folder
    if not file:
        raise ValueError("--config=FILE is missing: name a file in configs/")
    if Path(file).is_dir():
        raise ValueError(f"--config={file} is a folder: name a file in it, such as "
                         "--config=configs/phantom32_uvit_label.py")
    if not Path(file).is_file():
        names = [each.name for each in (ROOT / "configs").glob("*.py")]
        near = difflib.get_close_matches(Path(file).name, names, 1)
        raise ValueError(f"--config={file}: no such file" + (f'. Did you mean "configs/{near[0]}"?' if near else ""))
    if Path(file).suffix == ".json":
        raise ValueError(f"--config={file} is what a run wrote down: give its folder, --workdir={Path(file).parent}, or "
                         f"--config=configs/{_JSON_CONFIG.name}:{file}")
    if Path(file).suffix != ".py":
        raise ValueError(f"--config={file} is not a Python file: name a file in configs/")
    spec = importlib.util.spec_from_file_location("config_of_the_command_line", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise LookupError("it has no function get_config(), as the files in configs/ have it")
        config = get_config(*([argument] if argument else []))
    except SystemExit as error:
        raise ValueError(f"--config={file} ends by itself (SystemExit: {error}): a config only returns its "
                         "settings") from error
    except LookupError as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        at = f", line {line.lineno}" if Path(line.filename).name == Path(file).name else ""
        kind = "" if type(error) is LookupError else f"{type(error).__name__}: "
        raise ValueError(f"--config={file}{at}: {kind}{error}") from error
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, SyntaxError):
            raise ValueError(f"--config={file}: line {error.lineno} is no Python ({error.msg})") from error
        lines = [each for each in str(error).splitlines() if each.strip()]
        at = f", line {line.lineno}" if Path(line.filename).name == Path(file).name else ""
        raise ValueError(f"--config={file}{at}: {type(error).__name__}: {lines[-1] if lines else ''}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={file}: get_config() returns no ConfigDict")
    return config


def check_json(path):
    """Raise ValueError unless the file `path`, the config.json of a run, can be read."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; give the config.json of a run, or its folder as --workdir")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fault = "" if isinstance(content, dict) else "it holds no sections"
        for name in SECTIONS if not fault else ():
            if not isinstance(content.get(name, {}), dict):
                fault = fault or f"{name} is {content[name]!r} and no section"
    except ValueError as error:
        fault = str(error)
    if fault:
        raise ValueError(f"{path} is damaged ({fault}): put a whole copy there, or give the config that the run was begun with, "
                         "--config=configs/FILE.py and its options; run.json beside it keeps that command")


def missing_sections(script, config):
    """The sections of the config that `script` reads by name and that the config lacks."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(script)))
    except (OSError, TypeError, SyntaxError):
        return []
    nodes = list(ast.walk(tree))
    asked = {node.left.value for node in nodes if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant)
             and any(isinstance(each, ast.In | ast.NotIn) for each in node.ops)}
    read = [node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            and node.value.id == "config"]
    read += ["nnet", "sample"] * ("denoiser" in read)  # of the pipeline that makes previews
    return [name for name in dict.fromkeys(read) if name not in asked and name not in config and not hasattr(ConfigDict, name)]


def check(config):
    """Raise ValueError for numbers that no run can mean; see `config_checks.check_values`."""
    config_checks.check_values(config)


def find_assets(config):
    """Where a script is called outside of the repository, let paths of configs that begin with assets/ mean
    those of the repository.

    A path that is there in the current folder stays as it is.
    """
    for section in [config, *(value for value in config.values() if hasattr(value, "items"))]:
        for key, value in section.items():
            if isinstance(value, str) and value.startswith("assets/"):
                section[key] = _in_repository(value)


def _in_repository(path):
    """A path below the repository, as text, where the current folder has none such and the repository has;
    else as it is.

    A '{' in the name of a file stands for several: there its folder decides.
    """
    def there(candidate):
        return candidate.parent.is_dir() if "{" in candidate.name else candidate.exists()

    found = Path(__file__).parent.parent / path
    return str(found) if not there(Path(path)) and there(found) else path


def default_workdir(flag):
    """workdir/<config stem>/<overrides joined by '-', or 'default'>, as U-ViT names its runs."""
    stem = Path(flag.config_filename.split(":")[0]).stem
    named = {path: value for path, value in sorted(flag.override_values.items())
             if path.split(".")[0] not in ("sample", "metrics")}
    parts = [f"{path.rsplit('.', 1)[-1]}={value}".replace(os.sep, "_").replace(" ", "") for path, value in named.items()]
    name = "-".join(parts)
    if len(name) > 200:  # longer than a file system likes
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return os.path.join("workdir", stem, name or "default")


def join_values(argv):
    """The arguments with '--name', 'value' as '--name=value', as absl reads them, and `~` of paths replaced."""
    joined, rest = [], list(argv[1:])
    while rest:
        part = rest.pop(0)
        if part == "--":
            return [argv[0], *joined, part, *rest]
        name = _name(part)
        if name and "=" not in part and name in flags.FLAGS and not flags.FLAGS[name].boolean:
            if not rest or re.match(r"--?[A-Za-z]", rest[0]):
                raise ValueError(f"{part} has no value: write {part}=VALUE")
            part = f"{part}={rest.pop(0)}"
        if name and "=" in part and name not in _TEXTS and not name.startswith("config."):
            left, _, value = part.partition("=")
            part = f"{left}={config_options.expand_home(value)}"
        joined.append(part)
    return [argv[0], *joined]


def _join_overrides(argv, config):
    """'--config.a.b', 'value' as one argument; an option that is yes or no takes no value after a blank, as in absl."""
    joined, rest = [], list(argv[1:])
    while rest:
        part = rest.pop(0)
        if _name(part).startswith("config.") and "=" not in part and rest and not re.match(r"--?[A-Za-z]", rest[0]):
            section = config
            for key in _name(part).split(".")[1:]:
                section = section.get(key) if hasattr(section, "get") else None
            if not isinstance(section, bool):
                part = f"{part}={rest.pop(0)}"
        joined.append(part)
    return [argv[0], *joined]


def _overrides(argv):
    """{dotted path: text} of the --config.a.b=text of a command line."""
    typed = {}
    for part in argv[1:]:
        if re.match(r"--?(no)?config\.", part):
            path, _, text = part.lstrip("-").partition("=")
            typed[path.removeprefix("no").split(".", 1)[1]] = text
    return typed


def _name(part):
    """'workdir' of '--workdir=x'; '' of what is no option."""
    return part.lstrip("-").split("=", 1)[0] if part.startswith("-") else ""


def describe_error(error, config=None, config_file=""):
    """What an error means to the person at the command line, in one message.

    Args:
        error: any exception.
        config: that of the command line, by which options are named in full.
        config_file: the value of --config.
    """
    text = _describe(error, config_file or "")
    return text if config is None else config_options.name_options(text, config)


def _describe(error, config_file):
    file = _file_read(error)
    if isinstance(error, UnicodeDecodeError) and file:
        return (f"{file} is not text in UTF-8 (byte {error.start + 1}: {error.reason}). Save it as UTF-8, or give "
                "another file")
    if isinstance(error, _DAMAGED) or type(error).__name__ in _DAMAGED_BY_NAME:
        text = str(error).splitlines()[0] if str(error) else "it ends too early"
        if "No space left" in text:
            return _describe_full_disk(file or _run_folder(error))
        if file and file not in text:
            return f"{file} cannot be read ({type(error).__name__}: {text}): it is damaged or of another kind; put a whole copy there"
    if isinstance(error, OSError) and error.errno:
        if error.strerror != os.strerror(error.errno):  # a sentence of ours, which names the file and what to do
            return error.strerror or str(error)
        return _describe_os_error(error, file)
    if isinstance(error, AttributeError):
        section = _missing_section(error)
        if section:
            return _describe_missing(section, config_file)
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{text}" if isinstance(error, _WRITTEN_FOR_USERS) else f"{text} ({type(error).__name__}; --verbosity=1 shows where)"


def _describe_os_error(error, file):
    name = error.filename or file
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _describe_full_disk(name or _run_folder(error))
    if not name:
        return str(error)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and Path(name).is_file():
        return (f"{name} is a file where a folder is needed: choose another place, or take it away "
                f"([Errno {error.errno}] {error.strerror})")
    advice = {errno.EEXIST: "is there already and is no folder: choose another place, or take it away",
              errno.ENOTDIR: "goes through a file where a folder is needed: choose another place",
              errno.EISDIR: "is a folder where a file is needed",
              errno.ENOENT: "does not exist",
              errno.EACCES: "may not be read or written by you: change its permissions, or choose another place",
              errno.EPERM: "may not be changed by you: change its permissions, or choose another place",
              errno.EROFS: "lies on a disk that cannot be written: choose another place",
              errno.ENAMETOOLONG: "is longer than the disk takes: choose a shorter name"}
    return f"{name} {advice[error.errno]} ([Errno {error.errno}] {error.strerror})" if error.errno in advice else str(error)


def _describe_full_disk(name):
    places = [Path(name), *Path(name).absolute().parents] if name else []
    folder = next((each for each in places if each.is_dir()), None)
    free = f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free at {folder})" if folder else ""
    what = "a file" if not name else f"a file in {name}" if folder == Path(name) else name
    return (f"{what} could not be written: no space is left on the disk{free}. Make room, or choose a folder on "
            "another disk, and give the same command again")


def _file_read(error):
    """The file or folder that the innermost function of ours, or the one that it called, had at hand; '' where none can be told."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        values = frame.f_locals
        for key in ("path", "file", "filename", "name", "source", "table", "folder", "out", "output", "target",
                    "input_path", "self"):  # the last of pathlib's own functions
            value = values.get(key)
            if isinstance(value, (str, Path)) and str(value) and len(str(value)) < 4096 and "\0" not in str(value) \
                    and (os.path.sep in str(value) or isinstance(value, Path)) \
                    and (Path(value).exists() or Path(value).parent.is_dir()) \
                    and Path(value).suffix != ".py":
                return str(value)
    return ""


def _run_folder(error):
    """The folder of the run that the innermost function was writing; '' where there is none."""
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        folder = getattr(frame.f_locals.get("self"), "folder", None) or frame.f_locals.get("workdir")
        if isinstance(folder, (str, Path)) and str(folder) and Path(folder).is_dir():
            return str(folder)
    return ""


def _describe_missing(section, config_file):
    """That the file of --config lacks 'config.metrics', and what to do."""
    file, _, saved = config_file.partition(":")
    if saved:
        return (f"{saved} has no {section}, which this script reads. Give the config that the run was begun "
                "with: --config=configs/FILE.py and its options")
    what = "the section" if section.count(".") == 1 else "it"
    return (f"{file or 'the config'} has no {section}, which this script reads: add {what}, as the other files in "
            "configs/ have it")


def _missing_section(error):
    """'config.metrics', which a line of ours reads, of an AttributeError of a config; '' of others."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or "ml_collections" not in frames[-1].filename:
        return ""
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename]
    key = re.match(r"\W*(\w+)", str(error))
    if not ours or not key:
        return ""
    source = ours[-1].line or linecache.getline(ours[-1].filename, ours[-1].lineno)
    at = re.search(rf"\bconfig(\.\w+)*\.{key[1]}\b", source)
    return at[0] if at else f"option {key[1]!r}"


def _describe_flag_error(error):
    text = " ".join(str(error).split()).removeprefix("flag ")
    if isinstance(error, flags.UnrecognizedFlagError):
        options = _own_flags()
        close = difflib.get_close_matches(error.flagname, options, n=1)
        takes = ", ".join(f"--{name}" for name in options)
        return (f"--{error.flagname}: this script has no such option; it has {takes}"
                + (f'. Did you mean "--{close[0]}"?' if close else ""))
    missing = re.match(r"--(\w+)=None: Flag --\w+ must have a value", text)
    if missing:
        return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"
    tuple_text = re.match(r"--([\w.]+)=(.*): Error while parsing string: .* as tuple", text)
    if tuple_text:
        parts = [part.strip().strip("'\"") for part in tuple_text[2].strip("()[]").split(",") if part.strip()]
        texts = not any(part[:1].isdigit() or part[:1] in "+-." for part in parts)
        listed = str(tuple(parts)).replace("', '", "','") if parts and texts else "(A,B)"
        return f"--{tuple_text[1]}={tuple_text[2]} is not a list: write it as --{tuple_text[1]}=\"{listed}\""
    kinds = {"invalid literal for int": "a whole number is needed", "could not convert string to float": "a number is needed",
             "Non-boolean argument": "True or False is needed"}
    needed = next((what for words, what in kinds.items() if words in text), "")
    typed = re.match(r"(--[\w.]+=.*?): (?:invalid literal|could not convert|\('Non-boolean)", text)
    return f"{typed[1]}: {needed}" if typed else f"{text}; {needed}" if needed else text


def _own_flags():
    """Names of the options of this script, without those that absl brings."""
    groups = flags.FLAGS.flags_by_module_dict().items()
    names = {flag.name for module, group in groups if not module.startswith("absl") for flag in group}
    return sorted(name for name in names if "." not in name)


def _keep_printing():
    """Let a terminal or a file that takes ASCII alone not end a finished run: what it cannot show is written as \\u2013."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _TypedOptions(logging.Filter):
    """Names options in log lines as they are typed at the command line."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def filter(self, record):
        text = record.getMessage()
        named = config_options.name_options(text, self.config) if "=" in text else text
        if named != text:
            record.msg, record.args = named, ()
        return True


def _set_up_log(config=None):
    rank = os.environ.get("RANK")
    logging.basicConfig(format=f"%(asctime)s{f' [{rank}]' if rank else ''} %(message)s", datefmt="%H:%M:%S", force=True,
                        level=logging.DEBUG if flags.FLAGS.verbosity > 0 else logging.INFO)
    for handler in logging.getLogger().handlers if config is not None else ():
        handler.addFilter(_TypedOptions(config))
    for noisy in ("PIL", "matplotlib", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
