"""Train face recognizers from few images per person by sparring with an adversarial generator.

The public API is `__all__` and, for writing recipes, the names in `sparface.recipes`; everything else may
change between versions.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparface.api import (
        align_photos,
        embed,
        load_config,
        load_generator,
        load_recognizer,
        open_shards,
        stream,
        synthesize,
        train,
    )
    from sparface.config import Config
    from sparface.errors import UserError
    from sparface.models.sae import SAE
    from sparface.shards import Batch, ShardSet

__all__ = [
    "SAE",
    "Batch",
    "Config",
    "ShardSet",
    "UserError",
    "__version__",
    "align_photos",
    "embed",
    "load_config",
    "load_generator",
    "load_recognizer",
    "open_shards",
    "stream",
    "synthesize",
    "train",
]
_PLACES = {
    "SAE": "sparface.models.sae",
    "Batch": "sparface.shards",
    "Config": "sparface.config",
    "ShardSet": "sparface.shards",
    "UserError": "sparface.errors",
}

try:
    __version__ = version("sparface")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds to import, and verbs such as `sparface jobs` don't need it."""
    if name not in __all__:
        raise AttributeError(f"module 'sparface' has no attribute '{name}'")
    return getattr(import_module(_PLACES.get(name, "sparface.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
