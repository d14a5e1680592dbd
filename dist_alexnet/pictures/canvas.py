"""The only door to matplotlib: figures of their own, and their way to bytes. Nothing here is shared or kept.

The same drawing gives the same bytes: no date, no version and no random names go into a file.
"""

import base64
import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]  # (H, W, 3), R G B

FOLDER = "pictures"  # of a run folder: where what is drawn of it lies

INK, PALE, BLUE, ORANGE, RED = "#1b2733", "#9aa7b4", "#2f7fd1", "#e08a1e", "#d1434b"
COLOURS = (BLUE, ORANGE, "#3a9d6e", "#8b63c7", RED)
DOTS_PER_INCH = 100
# In an SVG that stands in a page the ink is the page's: dark on light, or light on dark.
_INK_OF_THE_PAGE = "#010203"


def new_figure(width_in: float, height_in: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty figure, of inches; a PNG of it has DOTS_PER_INCH. layout None: for `cell`, and several times faster."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), dpi=DOTS_PER_INCH, layout=layout)


def cell(figure: "Figure", left_in: float, top_in: float, width_in: float, height_in: float) -> "Axes":
    """A place without axes, so many inches from the left and from the top of the figure."""
    width, height = figure.get_size_inches()
    bottom_in = height - top_in - height_in
    axes = figure.add_axes((left_in / width, bottom_in / height, width_in / width, height_in / height))
    axes.set_axis_off()
    return axes


def plain(text: str, most: int = 40) -> str:
    """Words from a data set as they may stand in a picture: one line, printable, not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def percent(part: float, digits: int = 1) -> str:
    return f"{100 * part:.{digits}f} %"


def write_text(axes: "Axes", x: float, y: float, text: str, **style: Any) -> None:
    """Text in data coordinates. Dollar signs are dollar signs, and no formula."""
    axes.text(x, y, text, parse_math=False, **style)


def title(axes: "Axes", text: str, **style: Any) -> None:
    """The title of one drawing, small, from its left edge."""
    axes.set_title(text, parse_math=False, loc="left", **{"fontsize": 9, "color": INK, **style})


def picture(axes: "Axes", pixels: Pixels) -> None:
    """A picture with its own pixels, without axes."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("NW")


def quiet(axes: "Axes", ink: str = INK) -> None:
    """Two thin axes and small ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(ink)
    axes.tick_params(colors=ink, labelsize=9)


def png_of(figure: "Figure") -> bytes:
    """The figure as a PNG on white."""
    return _drawn(figure, "png", facecolor="white")


def svg_of(figure: "Figure") -> str:
    """The figure as an <svg> element for a page. What was drawn in `page_ink()` has the colour of the page's text."""
    text = _drawn(figure, "svg", transparent=True).decode()
    element = text[text.index("<svg") :]
    element = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)  # as wide as there is room
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return element.replace(_INK_OF_THE_PAGE, "currentColor")


def page_ink() -> str:
    """The colour to draw with where the page gives the ink (svg_of)."""
    return _INK_OF_THE_PAGE


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3 or 4) as a PNG, as they are."""
    return _encoded(pixels, "png", {"optimize": True})


def jpeg(pixels: Pixels) -> bytes:
    """Pixels (H, W, 3) as a JPEG, which for photographs is far smaller."""
    return _encoded(pixels, "jpeg", {"quality": 85})


def data_url(file: bytes) -> str:
    """The bytes of a PNG or JPEG as a URL that holds them."""
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def mosaic(tiles: Sequence[Pixels], across: int, gap: int = 1, scale: int = 1) -> NDArray[np.uint8]:
    """Tiles of one size side by side, `across` of them a row, as R G B A: the gaps let the page through.

    scale: how many pixels a tile's pixel becomes in each direction.
    """
    height, width, _ = tiles[0].shape
    down = -(-len(tiles) // across)
    step_y, step_x = height * scale + gap, width * scale + gap
    whole = np.zeros((down * step_y - gap, across * step_x - gap, 4), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // across * step_y, number % across * step_x
        large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        whole[y : y + large.shape[0], x : x + large.shape[1], :3] = large
        whole[y : y + large.shape[0], x : x + large.shape[1], 3] = 255
    return whole


def _drawn(figure: "Figure", form: str, **wishes: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "dist-alexnet", "svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names of classes in any script
        figure.savefig(buffer, format=form, metadata=metadata, **wishes)
    return buffer.getvalue()


def _encoded(pixels: NDArray[np.uint8], form: str, wishes: dict[str, Any]) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    metadata: Any = {"Software": None} if form == "png" else None
    imsave(buffer, np.ascontiguousarray(pixels), format=form, metadata=metadata, pil_kwargs=wishes)
    return buffer.getvalue()
