"""Files of weights as people have them, read without executing anything in them."""

from __future__ import annotations

import io
import math
import os
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkit.datasets.array_files import read_npz
from jaxkit.datasets.extras import require

# A description of tensors is some hundred bytes a tensor; what is larger is none.
_LARGEST_PICKLE = 1 << 24

_SAFETENSORS_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_STORAGE_TYPES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of weights; its contents tell its format, not its name.

    Args:
        path: a safetensors file, an NPZ file, a file that PyTorch >= 1.6 saved, or a folder that
            holds `model.safetensors` or `pytorch_model.bin`.

    Returns:
        Arrays by name; of PyTorch's files what was saved, dictionaries in dictionaries if need be.

    Raises:
        ImportError: for safetensors, without the `vision` extra.
        ValueError: if the file is missing, damaged, of another format, or holds more than arrays
            and plain values.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        inside = [path / name for name in names if (path / name).is_file()]
        if not inside:
            raise ValueError(f"{path} holds neither {' nor '.join(names)}: name a file")
        path = inside[0]
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with open(path, "rb") as stream:
        start = stream.read(9)
    # The length of a safetensors header comes first and may begin as a pickle or a zip file does.
    within = int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    if start[8:] == b"{" and within:
        return _read_safetensors(path)
    if start == b"version h":
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself: get that with git lfs pull"
        )
    if start[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if start[:1] == b"\x80":
        raise ValueError(
            f"{path} is a bare pickle, as PyTorch before 1.6 wrote them, and reading it would "
            f"execute it. {_conversion(path)}"
        )
    if start[8:] == b"{":
        return _read_safetensors(path)
    raise ValueError(
        f"{path} cannot be read as safetensors, NPZ or a zip file of PyTorch: it starts with "
        f"{start[:8]!r}"
    )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    package = require("safetensors", "vision")
    try:
        found = package.deserialize(path.read_bytes())
    except package.SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from None
    tensors = {}
    for name, facts in found:
        if facts["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{path}: {name} has the type {facts['dtype']}, which is not read")
        flat = np.frombuffer(facts["data"], _SAFETENSORS_TYPES[facts["dtype"]])
        tensors[name] = flat.reshape(facts["shape"])
    return tensors


def _read_zip(path: pathlib.Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next((n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")), "")
            if root:
                return _read_torch(archive, root, path.stat().st_size)
    except _Refused as refused:
        raise ValueError(
            f"{path} holds {refused}, which is no array: to read it would be to execute it. "
            f"{_conversion(path)}"
        ) from None
    except Exception as error:  # a damaged zip file or pickle may raise anything
        raise ValueError(f"{path} is cut or damaged: {error}") from None
    if not any(name.endswith(".npy") for name in names):
        raise ValueError(f"{path} is a zip file that neither PyTorch nor NumPy wrote: {names[:5]}")
    # bfloat16 is written as two bytes without a type.
    return {
        name: array.view(jnp.bfloat16) if array.dtype == "V2" else array
        for name, array in read_npz(path).items()
    }


def _read_torch(archive: zipfile.ZipFile, root: str, size: int) -> dict[str, Any]:
    def read(name: str) -> bytes:
        info = archive.getinfo(root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise ValueError(f"{name} is compressed, or larger than the file")
        return archive.read(info)

    big = root + "byteorder" in archive.namelist() and read("byteorder") == b"big"
    found = _unpickle(read("data.pkl"), lambda key: read(f"data/{key}"), ">" if big else "<")
    if not isinstance(found, dict):
        raise ValueError(f"it must hold a dictionary of tensors, got {type(found).__name__}")
    return found


class _Refused(Exception):
    """A class or function that is not on the list."""


def _unpickle(description: bytes, read: Callable[[str], bytes], order: str) -> Any:
    """Rebuild arrays; of all classes and functions only PyTorch's ways to rebuild them are known.

    What a pickle can reach is made anew for each file, so that it cannot change it for the next.
    """
    if len(description) > _LARGEST_PICKLE:
        raise ValueError(f"data.pkl must have at most {_LARGEST_PICKLE} bytes, got more")
    # Lengths beyond the end, and memos that would not fit into memory, are found here.
    for opcode, argument, _ in pickletools.genops(description):
        if "PUT" in opcode.name and int(argument or 0) > len(description):
            raise ValueError(f"data.pkl asks for {opcode.name} {argument}")
    storages: dict[str, np.ndarray] = {}

    class State(dict):
        """Stands for `OrderedDict`, whose `_metadata` PyTorch saves."""

        def __setstate__(self, state: Any) -> None: ...

    class Options:
        """Stands for `argparse.Namespace`: training programs save their options."""

        def __setstate__(self, state: Any) -> None: ...

    def rebuild(storage: np.ndarray, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        what = (
            f"a tensor of shape {shape}, strides {strides} from {offset} in {len(storage)} numbers"
        )
        if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *shape, *strides)):
            raise ValueError(what)
        last = offset + sum((n - 1) * by for n, by in zip(shape, strides, strict=True))
        if math.prod(shape) > len(storage) or (math.prod(shape) and last >= len(storage)):
            raise ValueError(what)
        steps = [by * storage.itemsize for by in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)

    known = {
        ("collections", "OrderedDict"): State,
        ("argparse", "Namespace"): Options,
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor"): rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        **{("torch", name): name for name in _STORAGE_TYPES},
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise _Refused(f"{module}.{name}")
            return known[module, name]

        def persistent_load(self, pid: Any) -> np.ndarray:
            _, kind, key, _, length = pid
            if key not in storages:
                storages[key] = _numbers(read(key), kind, order)
            if len(storages[key]) != length:
                raise ValueError(f"data/{key} has {len(storages[key])} numbers, not {length}")
            return storages[key]

    return Unpickler(io.BytesIO(description)).load()


def _numbers(content: bytes, kind: str, order: Any) -> np.ndarray:
    dtype = np.dtype(_STORAGE_TYPES[kind])
    array = np.frombuffer(content, dtype.newbyteorder(order)).astype(dtype, copy=False)
    return array.view(jnp.bfloat16) if kind == "BFloat16Storage" else array


def _conversion(path: pathlib.Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        'If you trust it, convert it where PyTorch is installed: python -c "import torch, '
        f"safetensors.torch as s; w = torch.load('{path.name}', 'cpu', weights_only=False); "
        "w = w.state_dict() if hasattr(w, 'state_dict') else w; w = w.get('model', w.get("
        "'state_dict', w)); s.save_file({k: v.clone().contiguous() for k, v in w.items() if "
        f"torch.is_tensor(v)}}, '{target}')\""
    )
