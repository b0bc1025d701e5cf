"""What all pictures share: size, colours, PNG. What is drawn belongs to each picture."""

import io

from matplotlib.figure import Figure
from PIL import Image

# In inches. The UI shows a picture in a window as wide as four fifths of the screen, unscaled.
WIDTH, ROW, HEAD, FOOT = 11.6, 1.5, 0.62, 0.5
DPI = 92
INK, QUIET, GRID, FORECAST, THRESHOLD = "#222222", "#808080", "#e9e9e9", "#2b6cb0", "#c53030"


def png(figure: Figure) -> bytes:
    """Return the figure in 256 colours: a third of the bytes, and the octree keeps thin lines."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    image = Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def won(price: float, _: object) -> str:
    """Return an amount in KRW as an axis shows it: 1.5M, 20k, 300."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if price >= size:
            return f"{price / size:g}{letter}"
    return f"{price:g}"
