"""A caller of a server that is overloaded by others: `python -m benchmarks.overload_probe ADDRESS MODEL SECONDS`.

A process of its own, because what it sees shall be the server and not how busy those others are. Prints the outcomes of
its requests as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import uvloop

from benchmarks.overload import PROBES_PER_S, Outcomes, asking, build_request, flood


async def probe(address: str, model: str, seconds: float) -> Outcomes:
    """Ask now and then."""
    async with asking(address) as stub:
        return await flood(stub, build_request(model), PROBES_PER_S, seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(probe(sys.argv[1], sys.argv[2], float(sys.argv[3]))))))
