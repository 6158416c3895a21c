"""The article's claims about CUDA graphs: its table of limits for CUDA 12, and two remarks above that table.

"partly": the article says that some of the feature is supported and some is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Says = Literal["yes", "no", "partly", ""]  # "": the article does not mention it


@dataclass(frozen=True)
class Claim:
    """One row of the article."""

    says: Says
    words: str = ""


ARTICLE: dict[str, Claim] = {
    "dynamic parallelism": Claim("no", "not supported: a graph is meant to be static"),
    "streams": Claim("yes", "supported: a graph is bound to a stream and runs beside other work"),
    "events": Claim("yes", "supported: events synchronise inside a graph"),
    "global memory": Claim("yes", "supported"),
    "shared memory": Claim("yes", "supported"),
    "constant memory": Claim("yes", "supported"),
    "texture memory": Claim("yes", "supported"),
    "unified memory": Claim("partly", "partly supported: consistency needs thought"),
    "runtime API": Claim("partly", "not every call can be captured"),
    "allocation": Claim("no", "a runtime call that is not supported"),
    "driver API": Claim("partly", "partly supported"),
    "update": Claim("yes", "supported: parameters changed, nodes added and removed; its cost counts"),
    "launch sizes": Claim("no", "grid and block must be constant expressions"),
    "conditional nodes": Claim(""),
    "device-side launch": Claim(""),
    "child graphs": Claim(""),
    "host functions": Claim(""),
}
