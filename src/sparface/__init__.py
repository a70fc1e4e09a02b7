"""Train face recognizers from few images per person by sparring with an adversarial generator."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sparface")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"
