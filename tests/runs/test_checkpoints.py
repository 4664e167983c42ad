"""Damaged checkpoints: no byte may change unnoticed, and none may end in a traceback."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from fer_lightning.errors import UserError
from fer_lightning.runs.checkpoints import WholeCheckpointIO, checkpoint_to_resume, read_checkpoint
from fer_lightning.runs.folder import BEST, LAST, PREVIOUS

WEIGHTS = torch.arange(40.0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / LAST
    torch.save({"state_dict": {"weight": WEIGHTS}, "epoch": 1}, path)
    return path


def test_no_flipped_bit_is_read_as_other_weights(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    refused, messages = 0, set()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        checkpoint.write_bytes(damaged)
        try:
            state = read_checkpoint(checkpoint)["state_dict"]
        except UserError as error:
            messages.add(str(error))
            refused += 1
        else:  # a byte without a meaning, such as a time stamp
            assert torch.equal(state["weight"], WEIGHTS), position
    assert refused > len(content) / 2
    assert all(m.startswith(f"{checkpoint}: damaged") and "\n" not in m for m in messages)


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_write_that_fails_leaves_all_checkpoints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {}
    for i, old in enumerate((LAST, PREVIOUS, BEST)):
        torch.save({"state_dict": {"weight": WEIGHTS + i}}, tmp_path / old)
        before[tmp_path / old] = (tmp_path / old).read_bytes()

    def half(content: object, file: BinaryIO) -> None:
        file.write(b"PK" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        WholeCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_tensor_marked_as_a_directory_is_refused(checkpoint: Path) -> None:
    """torch.load would return memory that was never written."""
    content = bytearray(checkpoint.read_bytes())
    name = content.rindex(b"last/data/0")  # in the table of contents, 8 bytes after the attributes
    content[name - 8] |= 0x10
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match="a directory in place of a record"):
        read_checkpoint(checkpoint)


def test_no_truncated_file_is_read(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    for size in range(0, len(content), 7):
        checkpoint.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(checkpoint)


def test_resume_skips_a_checkpoint_whose_table_of_contents_is_damaged(checkpoint: Path) -> None:
    """Such a file passes the checksums of its records, or has names that are not UTF-8."""
    previous = checkpoint.with_name(PREVIOUS)
    content = checkpoint.read_bytes()
    previous.write_bytes(content)
    directory = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x05\x06"))
    for position in (directory + 42, directory + 46, directory + 47):  # of the offset, and of the name
        damaged = bytearray(content)
        damaged[position] ^= 0x80
        checkpoint.write_bytes(damaged)
        assert checkpoint_to_resume(checkpoint.parent) == previous
    previous.write_bytes(b"")
    assert checkpoint_to_resume(checkpoint.parent) is None
