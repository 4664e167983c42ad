"""Checkpoints: written completely or not at all, and read without running or allocating what a file claims."""

from __future__ import annotations

import io
import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fer_lightning.errors import UserError
from fer_lightning.runs.folder import BEST, CHECKPOINTS, LAST, PREVIOUS

log = logging.getLogger(__name__)

CALLED = re.compile(
    r"torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|collections (OrderedDict|Counter)|torch (Size|device)|_codecs encode|__builtin__ (set|complex)"
)
"""Functions that the header of a checkpoint may call: none allocates memory by a number in the file."""


DIRECTORY = 0x10
"""MS-DOS attribute of a directory in a ZIP archive."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, on the CPU: a dict of plain values and tensors.

    Nothing in the file is run, memory is bounded by its size, and every byte is compared with the checksums in it:
    `torch.load` checks none of these. With `weights_only` it still wraps a record of a few bytes as a tensor of as many
    as the header claims, and reads beyond its end.

    Raises:
        UserError: the file is missing, damaged, compressed, a pickle, or otherwise not what `torch.save` wrote.
    """
    try:
        return _read(path)
    except _DamagedError as error:
        raise UserError(
            f"{path}: damaged or not a checkpoint of this project ({error}); restore the file, or train again"
        ) from error


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest intact checkpoint of a folder, or None if training has to start at the beginning."""
    for path in (folder / LAST, folder / PREVIOUS, folder / BEST):
        if path.is_file():
            try:
                _read(path)
                return path
            except _DamagedError as error:
                log.warning("%s is damaged (%s): resuming from the checkpoint before it, if there is one", path, error)
    return None


class _DamagedError(Exception):
    """The reason why a checkpoint cannot be read."""


def _read(path: Path) -> dict[str, Any]:
    try:
        _check_archive(path)
        # On the CPU wherever it was written; as Lightning does, the states are moved where they are used.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise ValueError("it holds no weights of a run")
    except Exception as error:  # of any kind, by what is in the file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _DamagedError(" ".join(reason.split())[:200]) from error
    return checkpoint


def _check_archive(path: Path) -> None:
    """Raises ValueError or BadZipFile unless a file is a ZIP archive of stored, intact records of the claimed sizes."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        sizes = {record.filename: record.file_size for record in records}
        if len(sizes) < len(records):
            raise ValueError("it has two records of one name")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed, and may expand to any size")
        # torch.load leaves the memory of a tensor uninitialized where its record is marked as a directory.
        if any(record.is_dir() or record.external_attr & DIRECTORY for record in records):
            raise ValueError("it holds a directory in place of a record")
        # Records that overlap could claim more than the file holds.
        if sum(sizes.values()) > path.stat().st_size or min((r.header_offset for r in records), default=1) != 0:
            raise ValueError("its records claim more than the file holds")
        (header,) = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")] or [""]
        if not header:
            raise ValueError("it has no data.pkl")
        root = header.removesuffix("data.pkl")
        for key, nbytes in _storages(archive.read(header)):
            if nbytes > sizes.get(f"{root}data/{key}", -1):
                raise ValueError(f"tensor {key} claims {nbytes:,} bytes, more than its record holds")
        if (record := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {record} is wrong")


def _storages(header: bytes) -> Iterator[tuple[str, int]]:
    """Key and claimed size in bytes of every storage that a header refers to.

    The header is a pickle, whose instructions are followed on a stack of names and numbers; nothing is called.

    Raises:
        ValueError: an instruction, a call or a reference that `torch.save` does not write.
        IndexError, KeyError: the instructions make no sense.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(header):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT" | "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET":
                stack.append(None)
            case "BINUNICODE" | "SHORT_BINSTRING" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_Global(argument))
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = tuple(stack), outer.pop()
                stack.append(items)
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = len(stack) - ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3").index(opcode.name)
                if n < 0:
                    raise ValueError("its header takes more than is there")
                stack[n:] = [tuple(stack[n:])]
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                stack = outer.pop()
            case "APPEND" | "BUILD":
                stack.pop()
            case "SETITEM":
                del stack[-2:]
            case "REDUCE":
                stack.pop()
                function = stack.pop()
                if not isinstance(function, _Global) or not CALLED.fullmatch(function.name):
                    raise ValueError(f"its header calls {getattr(function, 'name', function)}")
                stack.append(None)
            case "BINPERSID":
                yield _storage(stack.pop())
                stack.append(None)
            case _:
                raise ValueError(f"its header has the instruction {opcode.name}")


ITEM_SIZES = {
    "BFloat16Storage": 2, "BoolStorage": 1, "ByteStorage": 1, "CharStorage": 1, "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8, "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "IntStorage": 4,
    "LongStorage": 8, "ShortStorage": 2, "UntypedStorage": 1,
}  # fmt: skip
"""Bytes of an element of torch's types of storages."""


class _Global(NamedTuple):
    """A name in a pickle: "module attribute"."""

    name: str


def _storage(reference: Any) -> tuple[str, int]:
    """Key and claimed size of ("storage", type, key, device, number of elements)."""
    word, storage_type, key, _, n = reference
    module, _, name = storage_type.name.partition(" ")
    if word != "storage" or module != "torch" or not isinstance(key, str) or type(n) is not int or n < 0:
        raise ValueError("its header refers to a tensor in a way that torch.save does not")
    return key, n * ITEM_SIZES[name]


def _check_readable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raises UserError, while there is something to correct, if `read_checkpoint` would refuse a callback's state."""
    try:
        _check_header(path)
    except ValueError:
        for name, state in checkpoint.get("callbacks", {}).items():
            buffer = io.BytesIO()
            torch.save(state, buffer)
            try:
                _check_header(buffer)
            except ValueError as error:
                raise UserError(
                    f"the state of the callback {name} cannot be read from a checkpoint again ({error}): let its "
                    "state_dict hold tensors, numbers, strings, lists and dicts only"
                ) from None
        raise


def _check_header(file: Path | io.BytesIO) -> None:
    with zipfile.ZipFile(file) as archive:
        (header,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        for _ in _storages(archive.read(header)):
            pass


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final path and moves it there once it is complete and on the disk.

    The last checkpoint but one stays as `previous.ckpt`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """See the base class.

        Raises:
            UserError: the disk is full or not writable; every checkpoint that was there still is.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _check_readable(checkpoint, part)
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            part.replace(path)
        except (UserError, ValueError):
            part.unlink(missing_ok=True)
            raise
        except (OSError, RuntimeError) as error:  # torch turns some of the first into the second
            part.unlink(missing_ok=True)
            run_dir = next((p.parent for p in path.parents if p.name == CHECKPOINTS), path.parent)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise UserError(
                f"{path}: could not be written ({reason}); the checkpoint before it is intact: make room, then resume "
                f"with `python train.py resume={run_dir}`"
            ) from error

    def load_checkpoint(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See the base class; paths of other checkpoints are replaced by their names in this one's folder.

        So a run folder may be moved, and no checkpoint from a stranger has `ModelCheckpoint` remove other files.

        Raises:
            UserError: see `read_checkpoint`.
        """
        checkpoint = read_checkpoint(Path(path))
        folder = Path(path).resolve().parent  # as `ModelCheckpoint` resolves its own

        def here(other: str) -> str:
            return str(folder / Path(other).name) if other else other

        for state in checkpoint.get("callbacks", {}).values():
            if "best_model_path" in state:  # of a ModelCheckpoint
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = here(state.get(key, ""))
                state["best_k_models"] = {here(path): score for path, score in state.get("best_k_models", {}).items()}
                state["dirpath"] = str(folder)
        return checkpoint
