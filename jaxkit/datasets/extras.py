"""Optional dependencies: imported where used, so that importing the room stays light."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra of jaxkit brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is not installed: pip install 'jaxkit[{extra}]'", name=package
        ) from error
