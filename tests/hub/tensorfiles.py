"""Tensor files written byte by byte: safetensors, torch zip checkpoints, legacy pickles, GGUF.

Only stdlib and numpy, so that a test can also write what the real libraries refuse to write.
The bytes of a tensor follow from its seed alone: a reader can be checked against them
without keeping a second copy of a large model.
"""
from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
# safetensors dtype -> torch storage class; the others need an untyped storage and a torch dtype.
STORAGES = {
    "F32": "FloatStorage", "F64": "DoubleStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
    "U8": "ByteStorage", "BOOL": "BoolStorage", "C64": "ComplexFloatStorage",
}
TORCH_DTYPES = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
}

_BLOCK_BYTES = 1 << 20
# One random block; every other is this one xor a number of its own. That runs at memory speed,
# and a block at a wrong place still never compares equal.
_BASE = np.random.Philox(key=20240607).random_raw(_BLOCK_BYTES // 8)
_MASK64 = (1 << 64) - 1


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def random_chunks(seed: str, nbytes: int) -> Iterator[bytes]:
    """The deterministic bytes of `seed`, in pieces of at most 1 MiB."""
    start = _splitmix64(zlib.crc32(seed.encode()))
    for block, offset in enumerate(range(0, nbytes, _BLOCK_BYTES)):
        data = (_BASE ^ np.uint64(_splitmix64(start + block))).tobytes()
        yield data[: nbytes - offset]


def random_bytes(seed: str, nbytes: int) -> bytes:
    return b"".join(random_chunks(seed, nbytes))


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    layer: int | None = None  # the layer file it belongs to; None: non_layer
    seed: str = ""  # tied tensors share a seed
    data: bytes | None = None
    sparse: bool = False  # zeros but for a marked page at each end: files over 4 GiB at no cost

    @property
    def numel(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        return self.numel * BITS[self.dtype] // 8

    def chunks(self) -> Iterator[bytes]:
        if self.data is not None:
            yield self.data
        elif self.dtype == "BOOL":
            yield bytes(byte & 1 for byte in random_bytes(self.seed or self.name, self.nbytes))
        else:
            yield from random_chunks(self.seed or self.name, self.nbytes)

    def bytes(self) -> bytes:
        return b"".join(self.chunks())


def header_of(tensors: list[Tensor], metadata: dict | None = None) -> dict:
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    return header


def encode_header(header: dict | bytes, align: int = 8, declared: int | None = None) -> bytes:
    """The length word and the header. `declared` writes a length that is not the true one."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    if align:
        text += b" " * (-(8 + len(text)) % align)
    return struct.pack("<Q", len(text) if declared is None else declared) + text


def writer_order(tensors: list[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda t: (-BITS[t.dtype], t.name))


def write_safetensors(path: Path, tensors: list[Tensor], metadata: dict | None = None, *,
                      as_given: bool = False, align: int = 8) -> None:
    """`as_given` keeps the order of the list: that is how an odd offset comes about."""
    ordered = tensors if as_given else writer_order(tensors)
    with open(path, "wb") as out:
        out.write(encode_header(header_of(ordered, metadata), align))
        for tensor in ordered:
            if tensor.sparse:
                write_sparse(out, tensor)
            else:
                for chunk in tensor.chunks():
                    out.write(chunk)


def write_sparse(out, tensor: Tensor) -> None:
    mark = random_bytes(tensor.seed or tensor.name, 4096)
    start = out.tell()
    out.write(mark)
    out.flush()
    os.ftruncate(out.fileno(), start + tensor.nbytes)
    out.seek(start + tensor.nbytes - len(mark))
    out.write(mark)


def write_raw_safetensors(path: Path, header: dict | bytes, data: bytes = b"", *,
                          declared: int | None = None, align: int = 8) -> None:
    """Anything at all in the shape of a safetensors file; for the malformed ones."""
    path.write_bytes(encode_header(header, align, declared) + data)


def read_safetensors(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A strict reader: raises where the format's own rules are broken."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    end, result = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            raise ValueError(f"{name}: data starts at {first}, not at {end}")
        end = last
        result[name] = (entry["dtype"], tuple(entry["shape"]), bytes(body[first:last]))
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes after the last tensor")
    return result


# --- torch zip checkpoints ---------------------------------------------------------------------

def _int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _ints(values) -> bytes:
    return b"(" + b"".join(_int(v) for v in values) + b"t"


_ORDERED_DICT = _global("collections", "OrderedDict") + b")R"


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor that is a window of another one's storage, as tied and transposed weights are."""
    name: str
    of: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _pickled_tensor(tensor: Tensor, key: str, view: View | None) -> bytes:
    typed = STORAGES.get(tensor.dtype)
    storage = _global("torch", typed) if typed else _global("torch.storage", "UntypedStorage")
    count = tensor.numel if typed else tensor.nbytes
    persistent = b"(" + _text("storage") + storage + _text(key) + _text("cpu") + _int(count) + b"tQ"
    offset = view.offset if view else 0
    shape = view.shape if view else tensor.shape
    stride = view.stride if view else row_major(tensor.shape)
    rebuild = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
    tail = b"" if typed else _global("torch", TORCH_DTYPES[tensor.dtype])
    return (_global("torch._utils", rebuild) + b"(" + persistent + _int(offset) + _ints(shape)
            + _ints(stride) + b"\x89" + _ORDERED_DICT + tail + b"tR")


def state_dict_pickle(tensors: list[Tensor], views: list[View] = ()) -> bytes:
    """As torch.save(model.state_dict()) writes it: an OrderedDict with a `_metadata` attribute."""
    keys = {tensor.name: str(i) for i, tensor in enumerate(tensors)}
    by_name = {tensor.name: tensor for tensor in tensors}
    out = b"\x80\x02" + _ORDERED_DICT + b"("
    for tensor in tensors:
        out += _text(tensor.name) + _pickled_tensor(tensor, keys[tensor.name], None)
    for view in views:
        out += _text(view.name) + _pickled_tensor(by_name[view.of], keys[view.of], view)
    metadata = _ORDERED_DICT + b"(" + _text("") + b"}" + _text("version") + _int(1) + b"su"
    return out + b"u}" + _text("_metadata") + metadata + b"sb."


def write_torch_zip(path: Path, tensors: list[Tensor], views: list[View] = (), *,
                    root: str = "pytorch_model", pickled: bytes | None = None) -> None:
    """`pickled` replaces data.pkl, for checkpoints that try to run something."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled or state_dict_pickle(tensors, views))
        archive.writestr(f"{root}/byteorder", "little")
        for i, tensor in enumerate(tensors):
            with archive.open(f"{root}/data/{i}", "w", force_zip64=tensor.nbytes >= 1 << 31) as record:
                for chunk in tensor.chunks():
                    record.write(chunk)
        archive.writestr(f"{root}/version", "3\n")


def evil_pickle(marker: Path) -> bytes:
    """Creates `marker` if anybody runs it."""
    return b"\x80\x02" + _global("os", "system") + b"(" + _text(f"touch {marker}") + b"tR."


def write_legacy_pickle(path: Path) -> None:
    """The stream of pickles that torch wrote before 1.6: nothing maps it to layers."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    path.write_bytes(head + state_dict_pickle([]) + pickle.dumps([], protocol=2))


def write_gguf(path: Path, nbytes: int = 100_000) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
    path.write_bytes(head + random_bytes(path.name, nbytes - len(head)))


def read_layer_pt(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Reads a layer file with zipfile and a pickle reader that knows only torch's names."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"{path}: wrong CRC in {bad}")
        names = {name.split("/", 1)[1]: name for name in archive.namelist()}
        with archive.open(names["data.pkl"]) as pickled:
            tensors = _LayerUnpickler(pickled).load()
        result = {}
        for name, (dtype, key, shape, offset) in tensors.items():
            raw = archive.read(names[f"data/{key}"]) if f"data/{key}" in names else b""
            count = BITS[dtype] // 8
            for extent in shape:
                count *= extent
            start = offset * BITS[dtype] // 8
            result[name] = (dtype, shape, raw[start : start + count])
        return result


class _StateDict(dict):
    """Takes the `_metadata` attribute, which a plain dict refuses."""


class _LayerUnpickler(pickle.Unpickler):
    _DTYPE_OF_STORAGE = {name: dtype for dtype, name in STORAGES.items()}
    _DTYPE_OF_TORCH = {name: dtype for dtype, name in TORCH_DTYPES.items()}

    def persistent_load(self, pid):
        kind, storage, key, _, _ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"persistent id {pid!r}")
        return storage, key

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, grad, hooks: self._tensor(
                self._DTYPE_OF_STORAGE[storage[0]], storage, offset, shape, stride)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return lambda storage, offset, shape, stride, grad, hooks, dtype: self._tensor(
                self._DTYPE_OF_TORCH[dtype], storage, offset, shape, stride)
        if module in ("torch", "torch.storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} in a layer file")

    @staticmethod
    def _tensor(dtype, storage, offset, shape, stride):
        if 0 not in shape and tuple(stride) != row_major(tuple(shape)):
            raise pickle.UnpicklingError(f"stride {stride} of shape {shape}")
        return dtype, storage[1], tuple(shape), offset
