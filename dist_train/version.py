"""The version of this software, which pyproject.toml reads here, and where its files are."""

from pathlib import Path

__version__ = "0.2.0"
PACKAGE = Path(__file__).parent
"""The folder ``dist_train`` of the code that runs: in a checkout, a wheel or a snapshot."""
