"""Adapters: one module for each product; `PEERS` is their fixed order, ours first."""

from __future__ import annotations

from bench.peers.adapters.bentoml import BentoML
from bench.peers.adapters.litserve import LitServe
from bench.peers.adapters.mlserver import MLServer
from bench.peers.adapters.onnxruntime_server import OnnxruntimeServer
from bench.peers.adapters.ray_serve import RayServe
from bench.peers.adapters.tidegate import Tidegate
from bench.peers.adapters.triton import Triton
from bench.peers.peer import Peer

PEERS: tuple[Peer, ...] = (
    Tidegate(), LitServe(), MLServer(), BentoML(), RayServe(), Triton(), OnnxruntimeServer(),
)  # fmt: skip
