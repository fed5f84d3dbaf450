"""Writing figures of matplotlib, which is an extra."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from capax.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_matplotlib() -> bool:
    """Say whether figures can be drawn, without importing what draws them."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise ConfigError without matplotlib, before anything is measured for a picture."""
    if not has_matplotlib():
        raise ConfigError("a picture needs: pip install 'capax[plots]'")


def save_picture(path: Path, figure: Figure) -> None:
    """Write a figure; the ending chooses the format. Raises ConfigError if that does not work."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be written as a picture: {e}") from None


def svg_of(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "capax"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
