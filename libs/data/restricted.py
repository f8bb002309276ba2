"""Arrays from strangers: .npy files that hold pickles, read without running what is in them.

A pickle may call any function when it is loaded. Here it is read by an unpickler that knows arrays of numbers and plain
values, by stand-ins of our own, and nothing else that could be called.
"""

import re
from pickle import Unpickler

import numpy as np


def read_npy(path):
    """What a .npy file holds: an array of numbers, or from a pickle also tuples, lists, dicts, strings and numbers.

    Raises:
        ValueError: not a whole .npy file, or a pickle that asks for anything else; names the file and what it asked for.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = header(file)
            if dtype.hasobject:
                return _plain(_Restricted(file).load(), shape)
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except _Refused as error:
        raise ValueError(f"{path}: refused: its pickle asks for {error}, which features have no use for; do not load this "
                         "file by other means unless you trust who made it") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(f"{path}: not a whole .npy file of features ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle names something that is not an array or a plain value."""


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biufO]\d{1,2}", code):
            raise ValueError(f"an array of type {code!r}")
        self.code, self.order = code, "|"

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">"}.get(state[1], "|")

    @property
    def numpy(self):
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stands for numpy's reconstruction of an array: `value` is the array, or a list of the objects in it."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        if dtype.code[0] == "O":
            self.value = content
        else:
            self.value = np.frombuffer(content, dtype.numpy).reshape(shape, order="F" if fortran else "C").copy()


class _Scalar:
    """Stands for a single number of numpy."""

    def __init__(self, dtype, content):
        if dtype.code[0] == "O":
            raise ValueError("a scalar of type object")
        self.value = np.frombuffer(content, dtype.numpy)[0].item()

    def __setstate__(self, state):  # without it, a pickle could set attributes of this class
        raise ValueError("a scalar with a state")


class _Restricted(Unpickler):
    """Loads arrays of numbers by stand-ins; no function of numpy or Python is ever handed to the pickle."""

    _KNOWN = {("numpy", "dtype"): _Type, ("numpy", "ndarray"): "ndarray",
              **{(f"numpy.{core}.multiarray", name): kind for core in ("core", "_core")
                 for name, kind in (("_reconstruct", _Array), ("scalar", _Scalar))}}

    def find_class(self, module, name):
        if (module, name) not in self._KNOWN:
            raise _Refused(f"{module}.{name}")
        return self._KNOWN[module, name]


def _plain(value, shape=None):
    """The value without stand-ins; an object array of `shape` () is its one object."""
    if isinstance(value, _Array):
        if isinstance(value.value, list):
            objects = [_plain(part) for part in value.value]
            return objects[0] if shape == () else objects
        return value.value
    if isinstance(value, _Scalar):
        return value.value
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(part) for part in value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise ValueError(f"a {type(value).__name__} is no feature")
