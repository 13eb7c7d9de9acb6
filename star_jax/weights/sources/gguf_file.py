"""GGUF files: the header, read with bounds checks, and the tensors, dequantized one at a time by the `gguf` package.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` reads it too, but keeps a NumPy
view for every element of an array (18 s for the 262,144 tokens of a Gemma file; 0.3 s here) and believes every size.
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.errors import InputError, shown
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN, FLOATS

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Value types of metadata -> (little-endian struct format, bytes). 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_SLAB = 2**22  # elements dequantized at a time: `gguf.quants.dequantize` needs several times the memory of its result
_WITHOUT_BLOCKS = {"F32": FLOATS["F32"], "F16": FLOATS["F16"], "BF16": FLOATS["BF16"]}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file."""

    name: str
    shape: tuple[int, ...]  # as NumPy and Hugging Face have it; the file lists the axes in reverse
    type_name: str  # of ggml, e.g. "Q4_K"
    offset: int  # bytes from the start of the file
    n_bytes: int

    @property
    def dtype(self) -> np.dtype:
        """The narrowest float type that holds every value exactly."""
        return _WITHOUT_BLOCKS.get(self.type_name, FLOATS["F32"])


class GgufFile:
    """An open GGUF file whose sizes have been checked against its length.

    Attributes:
      metadata: key -> number, bool, text, list of texts, or array of numbers.
      tensors: name -> GgufTensor.

    Raises InputError for a file that is not GGUF, is cut short, or holds a type that cannot be dequantized; also if
    the package `gguf` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._package = _package(path)
        self.path = path
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise InputError(f"{path}: cannot be read ({error}); {DOWNLOAD_AGAIN}") from error
        cursor = _Cursor(path, self._bytes)
        n_tensors, n_values = cursor.counts()
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.text()
            if key in self.metadata:
                raise InputError(f"{path}: has the metadata {shown(key)} twice; {DOWNLOAD_AGAIN}")
            self.metadata[key] = cursor.value(cursor.number("<I"))
        headers = [cursor.tensor() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise InputError(f"{path}: general.alignment is {shown(alignment)}; {DOWNLOAD_AGAIN}")
        self.tensors = {tensor.name: tensor for tensor in self._tensors(headers, cursor.position, alignment)}

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A tensor, dequantized by `gguf.quants.dequantize` to float32, then cast."""
        tensor = self.tensors[name]
        quantization = self._package.GGMLQuantizationType[tensor.type_name]
        columns = tensor.shape[-1]
        rows = math.prod(tensor.shape[:-1])
        stored = np.frombuffer(self._bytes, np.uint8, tensor.n_bytes, tensor.offset).reshape(rows, -1)
        values = np.empty((rows, columns), dtype)
        step = max(1, _SLAB // columns)
        for first in range(0, rows, step):
            slab = stored[first : first + step]
            with np.errstate(all="ignore"):  # no warnings for scales that are not finite: `loader` refuses the tensor
                values[first : first + step] = self._package.quants.dequantize(slab, quantization)
        return values.reshape(tensor.shape)

    def _tensors(
        self, headers: list[tuple[str, tuple[int, ...], int, int]], end: int, alignment: int
    ) -> Iterator[GgufTensor]:
        """Tensors from (name, shape, type, offset). Raises InputError unless they follow each other, as llama.cpp does.

        `end`: of the header. Data begin at the next multiple of `alignment`, and so does each tensor.
        """
        start = -(-end // alignment) * alignment
        expected, names, seen = 0, dict[int, str](), set[str]()
        for name, shape, kind, offset in headers:
            if name in seen or offset != expected:
                reason = f"begins at byte {offset:,} of the data, not {expected:,}" if name not in seen else "is twice"
                raise InputError(f"{self.path}: the tensor {name} {reason}; {DOWNLOAD_AGAIN}")
            seen.add(name)
            if kind not in names:
                names[kind] = self._type_name(name, kind)
            block_size, block_bytes = self._package.GGML_QUANT_SIZES[self._package.GGMLQuantizationType(kind)]
            if shape[-1] % block_size:
                raise InputError(
                    f"{self.path}: the tensor {name} has rows of {shape[-1]} values, which do not divide into blocks "
                    f"of {block_size} ({names[kind]}); {DOWNLOAD_AGAIN}"
                )
            n_bytes = math.prod(shape) // block_size * block_bytes
            if start + offset + n_bytes > len(self._bytes):
                raise InputError(
                    f"{self.path}: cut short: the tensor {name} ends at byte {start + offset + n_bytes:,} and the file "
                    f"at {len(self._bytes):,}; {DOWNLOAD_AGAIN}"
                )
            yield GgufTensor(name, shape, names[kind], start + offset, n_bytes)
            expected += -(-n_bytes // alignment) * alignment
        if headers and start + expected < len(self._bytes):
            raise InputError(
                f"{self.path}: the tensors end at byte {start + expected:,} and the file at {len(self._bytes):,}; "
                f"{DOWNLOAD_AGAIN}"
            )

    def _type_name(self, tensor: str, kind: int) -> str:
        """The name of a type of ggml. Raises InputError if the package cannot dequantize it."""
        try:
            quantization = self._package.GGMLQuantizationType(kind)
        except ValueError:
            raise InputError(
                f"{self.path}: the tensor {tensor} has type {kind}, which the gguf package does not know; upgrade it, "
                "or get another quantization of the model"
            ) from None
        block = np.zeros((1, self._package.GGML_QUANT_SIZES[quantization][1]), np.uint8)
        try:
            self._package.quants.dequantize(block, quantization)
        except NotImplementedError:
            raise InputError(
                f"{self.path}: the tensor {tensor} has type {quantization.name}, which the gguf package cannot "
                "dequantize; get another quantization of the model"
            ) from None
        return str(quantization.name)


class _Cursor:
    """Reads a GGUF header from front to back. All methods raise InputError where the file ends too early."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self._content, self.position = path, content, 0

    def counts(self) -> tuple[int, int]:
        """(tensors, metadata values) of a file of a known version."""
        if self._content[:4] != _MAGIC:
            raise InputError(f"{self.path}: is not a GGUF file; {DOWNLOAD_AGAIN}")
        self.position = 4
        version = self.number("<I")
        if version not in _VERSIONS:
            about = "big-endian" if not version & 0xFFFF else f"version {version}"
            raise InputError(f"{self.path}: is a GGUF file of {about}; star_jax reads little-endian versions 2 and 3")
        n_tensors, n_values = self.number("<Q"), self.number("<Q")
        self._check(24 * n_tensors + 12 * n_values)  # the least that each takes
        return n_tensors, n_values

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._check(size)
        value = struct.unpack_from(form, self._content, self.position)[0]
        self.position += size
        return value

    def text(self) -> str:
        size = self.number("<Q")
        self._check(size)
        text = self._content[self.position : self.position + size]
        self.position += size
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: a text of the header is not UTF-8 ({error}); {DOWNLOAD_AGAIN}") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise InputError(f"{self.path}: a metadata value has the unknown type {kind}; {DOWNLOAD_AGAIN}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            self._check(8 * count)
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise InputError(f"{self.path}: a metadata array has the unknown element type {kind}; {DOWNLOAD_AGAIN}")
        dtype = np.dtype(_SCALARS[kind])
        self._check(dtype.itemsize * count)
        array = np.frombuffer(self._content, dtype, count, self.position)
        self.position += dtype.itemsize * count
        return array

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset) of a tensor."""
        name, n_dims = self.text(), self.number("<I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise InputError(f"{self.path}: the tensor {name} has {n_dims} axes; {DOWNLOAD_AGAIN}")
        shape = tuple(self.number("<Q") for _ in range(n_dims))[::-1]
        if 0 in shape:
            raise InputError(f"{self.path}: the tensor {name} has shape {list(shape)}; {DOWNLOAD_AGAIN}")
        return name, shape, self.number("<I"), self.number("<Q")

    def _check(self, size: int) -> None:
        if self.position + size > len(self._content):
            raise InputError(
                f"{self.path}: cut short: the header goes on after the end of the file, byte {len(self._content):,}; "
                f"{DOWNLOAD_AGAIN}"
            )


def _package(path: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise InputError(f"{path}: GGUF files need the package gguf; pip install 'star_jax[gguf]'") from error
    return gguf
