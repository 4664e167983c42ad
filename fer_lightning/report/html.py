"""Pages that open anywhere: one file each, without scripts or network, with the images inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

PLOT_SCALE = 0.52
"""CSS pixels for each pixel of a figure, so that text has the same size in all of them."""


def data_uri(image: bytes | NDArray[np.uint8]) -> str:
    """A PNG, or an image, grey (H, W) or RGB (H, W, 3), as an address that holds it."""
    if not isinstance(image, bytes):
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        image = buffer.getvalue()
    return f"data:image/png;base64,{b64encode(image).decode()}"


def css_size(png: bytes) -> tuple[int, ...]:
    """Width and height of a figure on a page."""
    return tuple(round(pixels * PLOT_SCALE) for pixels in Image.open(BytesIO(png)).size)


PAGES = Environment(
    loader=PackageLoader("fer_lightning.report"),
    autoescape=True,  # class names, paths and config values may contain anything
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"data_uri": data_uri, "css_size": css_size}


def render(template: str, title: str, files: Sequence[str] = (), **values: Any) -> str:
    """A page.

    Args:
        template: name of the file in `templates/`.
        title: heading of the page.
        files: names of the files next to the page, to link to.
        values: of the template.
    """
    return PAGES.get_template(template).render(title=title, files=files, **values)
