"""Every server, by name, in the order of the table."""

from __future__ import annotations

from benchmarks.peers import bare, bentoml, litserve, mlserver, ray_serve, stn, triton
from benchmarks.peers.peer import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *bare.peers(),
        *stn.peers(),
        *triton.peers(),
        mlserver.PEER,
        litserve.PEER,
        bentoml.PEER,
        ray_serve.PEER,
    )
}
