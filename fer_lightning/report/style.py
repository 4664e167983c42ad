"""The style of all figures: for print, with colours for colour-blind readers, without pyplot."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from io import BytesIO
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageChops

DPI = 200

# Okabe and Ito, "Color universal design" (2008): distinct under the common colour deficiencies and in grey print.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, GRID = "#1a1a1a", "#6b6b6b", "#e6e6e6"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.8,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a class called "$x$" is a name, not a formula
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "figure.facecolor": "white",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this style, and leave the settings of matplotlib as they are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def png(figure: Figure) -> bytes:
    """The figure at 200 dpi, cropped to its content; the same figure gives the same bytes."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):  # ticks are created, and styled, when the figure is drawn
        canvas.draw()  # type: ignore[no-untyped-call]
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    # savefig(bbox_inches="tight") crops as well, but draws the figure twice.
    left, top, right, bottom = ImageChops.invert(image).getbbox() or (0, 0, *image.size)
    margin = DPI // 10
    box = (max(left - margin, 0), max(top - margin, 0), right + margin, bottom + margin)
    image = image.crop((*box[:2], min(box[2], image.width), min(box[3], image.height)))
    buffer = BytesIO()
    image.save(buffer, format="PNG", dpi=(DPI, DPI), compress_level=3)  # 6 takes twice as long for 10 % less
    return buffer.getvalue()


def short(name: str, width: int = 24) -> str:
    """`name` on one line of at most `width` characters."""
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"
