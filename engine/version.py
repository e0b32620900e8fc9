"""Which Troupe this is."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

try:
    VERSION: Final = version("troupe-engine")
except PackageNotFoundError:  # copied somewhere, and not installed
    VERSION: Final = "unknown"  # type: ignore[misc]
