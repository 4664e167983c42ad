"""fer-lightning: facial expression recognition experiments one can trust."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fer-lightning")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
