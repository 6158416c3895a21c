"""All probes, in the order of the article."""

from __future__ import annotations

from . import allocation, calls, memory, nodes, streams, updates
from .article import ARTICLE
from .probe import Probe

MODULES = (streams, memory, allocation, calls, updates, nodes)
_FOUND = [value for module in MODULES for value in vars(module).values() if isinstance(value, Probe)]
_ORDER = list(ARTICLE)
PROBES: dict[str, Probe] = {p.name: p for p in sorted(_FOUND, key=lambda p: _ORDER.index(p.feature))}
