"""Videos made by the tests: frame i has the grey value 8 i, a red upper left corner, and nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from fer_lightning.inference.media.video import silent_cv2

cv2 = silent_cv2()  # before the first video is written

RATE = 10.0
SIZE = (64, 48)


def write_video(path: Path, n: int = 30, *, codec: str = "mp4v", rate: float = RATE) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, SIZE)
    assert writer.isOpened()
    for i in range(n):
        frame = np.full((SIZE[1], SIZE[0], 3), 8 * i % 256, np.uint8)
        frame[:16, :16] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


def shown(image: np.ndarray, n: int = 30) -> int:
    """The number of the frame that an image shows, from its centre."""
    grey = float(image[image.shape[0] // 2 - 4 :, image.shape[1] // 2 - 4 :].mean())
    return int(np.abs(np.arange(n) * 8 % 256 - grey).argmin())


def rotate(path: Path, degrees: int) -> None:
    """Have an MP4 shown rotated clockwise: the matrix of its track header (ISO/IEC 14496-12, 8.3.2)."""
    one, matrices = 1 << 16, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = (one * value for value in matrices[degrees])
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def slow_down(path: Path, first: int) -> None:
    """Double the duration of all frames of an MP4 but the first ones: the time-to-sample table (8.6.1.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts")
    count, unit = struct.unpack(">II", data[at + 12 : at + 20])
    data[at - 4 : at + 20] = struct.pack(">I4s6I", 32, b"stts", 0, 2, first, unit, count - first, 2 * unit)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = data.index(box)
        data[at - 4 : at] = struct.pack(">I", struct.unpack(">I", data[at - 4 : at])[0] + 8)
    at = data.index(b"elst") + 12  # the edit would cut the rest off
    data[at : at + 4] = struct.pack(">I", 2 * struct.unpack(">I", data[at : at + 4])[0])
    path.write_bytes(data)


def header_first(path: Path) -> None:
    """Move the header of an MP4 before its frames, as in files for streaming: truncated, they can be read."""
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    frames, header = data[:at], bytearray(data[at:])
    start = data.index(b"mdat") - 4
    table = header.index(b"stco") + 8
    (n,) = struct.unpack(">I", header[table : table + 4])
    offsets = struct.unpack(f">{n}I", header[table + 4 : table + 4 + 4 * n])
    header[table + 4 : table + 4 + 4 * n] = struct.pack(f">{n}I", *(offset + len(header) for offset in offsets))
    path.write_bytes(frames[:start] + header + frames[start:])
