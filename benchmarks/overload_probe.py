"""A caller of a server that is overloaded by others: `python -m benchmarks.overload_probe ADDRESS MODEL SECONDS`.

A process of its own, because what it sees shall be the server and not how busy those others are; and where it may, a
real-time one, because a caller on another machine does not wait for a CPU of the server's. Prints the outcomes of its
requests as JSON, and whether it was a real-time process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import uvloop

from benchmarks.overload import PROBES_PER_S, Outcomes, asking, build_request, flood


def go_first() -> bool:
    """Whether the kernel lets this process, and the threads that it starts, run before all that is not real-time."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        return False
    return True


async def probe(address: str, model: str, seconds: float) -> Outcomes:
    """Ask now and then."""
    async with asking(address) as stub:
        return await flood(stub, build_request(model), PROBES_PER_S, seconds)


if __name__ == "__main__":
    first = go_first()
    seen = uvloop.run(probe(sys.argv[1], sys.argv[2], float(sys.argv[3])))
    print(json.dumps({"is_real_time": first, "outcomes": asdict(seen)}))
