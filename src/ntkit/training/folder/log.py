"""The append-only log of a run folder: framed, checksummed records of tensors, readable by number."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ntkit.errors import BadValueError, RunFolderError
from ntkit.files import Json, as_bytes

LOG = "steps.log"
_MAGIC = b"NTK1"
_PIECES = 1000  # that one call may write
_SMALL = 2**16  # bytes of a tensor that is copied out of a long record
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # what safetensors calls them
_OF_NAMES = {name: dtype for dtype, name in _DTYPES.items()}
_KNOWN = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
_HEADER = struct.Struct("<4sQQI")  # magic, number of the record, length of its payload, crc32


class LogWriter:
    """Appends records to a file, each by one unbuffered write, so that a kill loses none.

    The file is new; or it goes on behind the first ``count`` records, which are ``length`` bytes long.
    """

    def __init__(self, path: Path, count: int = 0, length: int = 0) -> None:
        self.path, self.count, self.length = path, count, length
        self._file = open(path, "r+b" if count else "xb", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)

    def append(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, object]) -> None:
        """Write one record; a write that fails (a full disk) leaves the log as it was."""
        payload = _payload(tensors, scalars)
        length = sum(map(len, payload))
        header = _HEADER.pack(_MAGIC, self.count, length, _crc(self.count, *payload))
        try:
            self._write([memoryview(header), *payload])
        except OSError as error:
            self._file.truncate(self.length)
            self._file.seek(self.length)
            raise RunFolderError(
                f"{self.path} cannot be written ({error.strerror}); the {max(self.count - 1, 0)} steps "
                f"before it are kept. Free some space, or record to another folder."
            ) from error
        self.count += 1
        self.length += len(header) + length

    def _write(self, pieces: list[memoryview]) -> None:
        while pieces:
            written = os.writev(self._file.fileno(), pieces[:_PIECES])
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][written:]

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


class LogReader:
    """Reads records by number, each checked against its checksum.

    A log that was still being written (``finished=False``) may end in a torn record, which is left
    out; one that was closed must have exactly the length and count given.
    """

    def __init__(self, path: Path, count: int | None = None, length: int | None = None) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be read ({error.strerror}); a run folder needs it. Give the folder that "
                f"ntkit.record made, or restore the file."
            ) from error
        self._offsets: list[int] = []
        try:
            self._open(count, length)
        except RunFolderError:
            self.close()
            raise

    def _open(self, count: int | None, length: int | None) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if length is not None and size != length:
            raise RunFolderError(
                f"{self.path} has {size} bytes, its manifest says {length}: the file was "
                f"{'truncated' if size < length else 'appended to'} after the run. Restore it from a copy, "
                f"or record the run again."
            )
        self._scan(size)
        if length is None and self._offsets:
            try:
                self.read(len(self._offsets) - 1)
            except RunFolderError:  # torn by a crash of the machine
                self._offsets.pop()
        if count is not None and len(self._offsets) != count:
            raise self._broken(f"holds {len(self._offsets)} records, its manifest says {count}")

    def __len__(self) -> int:
        return len(self._offsets)

    def end(self, number: int) -> int:
        """Return the place behind a record, in bytes from the beginning."""
        start = self._offsets[number]
        header = os.pread(self._file.fileno(), _HEADER.size, start)
        return start + _HEADER.size + _HEADER.unpack(header)[2]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, number: int) -> tuple[dict[str, Tensor], Json]:
        """Return the tensors and scalars of a record."""
        start = self._offsets[number]
        fd = self._file.fileno()
        magic, stored_number, length, crc = _HEADER.unpack(os.pread(fd, _HEADER.size, start))
        payload = self._bytes(start + _HEADER.size, length)
        stored = magic, stored_number, len(payload), _crc(number, memoryview(payload.numpy()))  # pyright: ignore[reportArgumentType]
        if stored != (_MAGIC, number, length, crc):
            raise self._broken(f"fails its checksum in record {number}")
        try:
            return _opened(payload)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise self._broken(f"has an unreadable record {number}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self, size: int) -> None:
        position = 0
        while position + _HEADER.size <= size:
            header = os.pread(self._file.fileno(), _HEADER.size, position)
            magic, number, length, _ = _HEADER.unpack(header)
            if magic != _MAGIC or number != len(self._offsets):
                raise self._broken(f"has no valid record {len(self._offsets)} at byte {position}")
            if position + _HEADER.size + length > size:
                break
            self._offsets.append(position)
            position += _HEADER.size + length

    def _bytes(self, start: int, length: int) -> Tensor:
        """Return bytes of the file, fewer where it ends."""
        end = min(start + length, self.size)
        read, data = 0, torch.empty(max(0, end - start), dtype=torch.uint8)
        view = memoryview(data.numpy())  # pyright: ignore[reportArgumentType]
        while read < len(view) and (count := os.preadv(self._file.fileno(), [view[read:]], start + read)):
            read += count
        return data[:read]

    def _broken(self, what: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path} {what}: the file was changed or damaged after it was written. Restore it from a "
            f"copy, or record the run again."
        )


def _payload(tensors: Mapping[str, Tensor], scalars: Mapping[str, object]) -> list[memoryview]:
    """Return the pieces of a safetensors file, those of tensors where they are: nothing is copied."""
    header: Json = {"__metadata__": {"scalars": json.dumps(scalars)}}
    pieces, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _DTYPES:
            raise BadValueError(f"{name!r} is of {tensor.dtype}, which no record holds; use {_KNOWN}.")
        data = memoryview(as_bytes(tensor).numpy())  # pyright: ignore[reportArgumentType]
        span = [end, end := end + len(data)]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        pieces.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(struct.pack("<Q", len(text)) + text), *(piece for piece in pieces if len(piece))]


def _opened(payload: Tensor) -> tuple[dict[str, Tensor], Json]:
    """Return what `_payload` wrote, checked; large tensors are where they were read, small ones copies."""
    data = payload.numpy()
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header: Json = json.loads(data[8:begin].tobytes())
    scalars, tensors = json.loads(header.pop("__metadata__")["scalars"]), {}
    for name, about in header.items():
        dtype, shape, (first, last) = _OF_NAMES[about["dtype"]], about["shape"], about["data_offsets"]
        size = last - first
        if not 0 <= first <= last <= len(data) - begin or prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name!r} is not where its header says")
        raw = payload[begin + first : begin + last]
        if size < min(_SMALL, len(data) // 4) or (begin + first) % dtype.itemsize:  # a view holds all of it
            raw = raw.clone()
        tensors[name] = raw.view(dtype).reshape(shape)
    return tensors, scalars


def _crc(number: int, *payload: bytes | memoryview) -> int:
    crc = zlib.crc32(struct.pack("<QQ", number, sum(map(len, payload))))
    for piece in payload:
        crc = zlib.crc32(piece, crc)
    return crc
