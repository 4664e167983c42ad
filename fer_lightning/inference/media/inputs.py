"""From what is typed on a command line to image and video files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from fer_lightning.errors import UserError, flat, printable
from fer_lightning.inference.media.images import is_image
from fer_lightning.inference.media.video import is_video

_PHOTOS = ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif"
_VIDEOS = ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .mts .m2ts .wmv .asf .flv .3gp .3g2 .ogv .mjpeg .mjpg .dv"
IMAGE_SUFFIXES, VIDEO_SUFFIXES = frozenset(_PHOTOS.split()), frozenset(_VIDEOS.split())


def expand(inputs: Iterable[str | os.PathLike[str]], beside: Path | None = None) -> list[Path]:
    """The files that the inputs name, each once.

    A file is taken as it is. Of a folder, images and videos are taken by their suffixes, those in folders below it
    included and hidden ones excluded, sorted by path. A pattern (`*`, `?`, `[…]`, `**` for any folders) stands for
    the files and folders that match it.

    Args:
        inputs: files, folders and patterns.
        beside: a folder that is left out wherever it is found in another one, such as that of the results.

    A folder below a named one that cannot be listed is an input as well, which fails when it is read.

    Raises:
        UserError: a path does not exist or cannot be read; a folder holds, or a pattern matches, no image or video.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        text, path = os.fspath(given), Path(given)
        if not text or "\0" in text:
            raise UserError(f"{text!r} is not a path: name a file, a folder or a pattern")
        if _is_file(path):
            files[path] = None
        elif path.is_dir():
            if not (below := _media_below(path, beside)):
                raise UserError(f"{printable(text)}: no image or video in this folder; name single files by their path")
            files |= dict.fromkeys(below)
        elif glob.has_magic(text):
            files |= dict.fromkeys(_matches(text, beside))
        else:
            raise UserError(f"{printable(text)}: no such file or folder")
    return list(files)


def kind(path: Path) -> Literal["image", "video"]:
    """Whether a file is an image or a video, by its content; by its suffix if that is neither, as in damaged files.

    An animated GIF, PNG or WebP file is an image.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        # Motion JPEG without a container looks like a JPEG.
        if suffix not in (".mjpeg", ".mjpg") and is_image(path):
            return "image"
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read ({error.strerror or flat(error)})") from error
    if suffix in VIDEO_SUFFIXES or is_video(path):
        return "video"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    raise UserError(f"{printable(path)} is neither an image nor a video in a known format")


def _is_file(path: Path) -> bool:
    try:
        if path.is_file():
            return True
        if path.exists() and not path.is_dir():
            raise UserError(f"{printable(path)} is neither a file nor a folder; a camera is named with --camera")
    except OSError as error:  # the name is too long, for example
        raise UserError(f"{printable(path)} cannot be read ({error.strerror})") from error
    return False


def _matches(pattern: str, beside: Path | None) -> list[Path]:
    found: list[Path] = []
    left_out = None if beside is None else beside.resolve()
    for match in map(Path, _glob(pattern)):
        if left_out is not None and left_out in (resolved := match.resolve(), *resolved.parents):
            continue
        if match.is_dir():
            found += _media_below(match, beside)
        elif _looks_like_media(match) and os.path.isfile(match):  # noqa: PTH113 - of what may not be read, False
            found.append(match)
    if not found:
        raise UserError(f"{printable(pattern)}: no image or video matches this pattern")
    return sorted(found)


def _glob(pattern: str) -> Iterator[str]:
    """What matches a pattern; `**` does not follow symbolic links, which may lead in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob takes no absolute patterns
        return
    at = parts.index("**")
    rest = parts[at + 1 :]
    for top in _glob(os.path.join(*parts[:at])) if at else [""]:  # noqa: PTH118 - Path drops an empty part
        if not rest:
            yield top or "."
            continue
        for parent, folders, _ in os.walk(top or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _glob(os.path.join(glob.escape(parent), *rest))  # noqa: PTH118


def _media_below(folder: Path, beside: Path | None) -> list[Path]:
    found: list[Path] = []

    def fail(error: OSError) -> None:
        if Path(error.filename) == folder:
            reason = f"cannot be read ({error.strerror}); name folders that you may list"
            raise UserError(f"{printable(error.filename)} {reason}") from error
        found.append(Path(error.filename))

    left_out = None if beside is None else beside.resolve()
    for parent, folders, names in os.walk(folder, onerror=fail):
        if left_out is not None and Path(parent).resolve() == left_out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        media = [path for name in names if _looks_like_media(path := Path(parent, name))]
        found += [path for path in media if os.path.isfile(path)]  # noqa: PTH113
    return sorted(found)


def _looks_like_media(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
