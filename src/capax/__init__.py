"""capax: run, scale and measure language models within a fixed inference capacity."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("capax")
except PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0+unknown"

__all__ = ["__version__"]
