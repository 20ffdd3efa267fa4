"""How a batch runs fast and exactly: packing, attention, precision. Knows no task."""

from veneer.engine.native import choose_kernels, own_kernels, use_kernels
from veneer.engine.packing import Layout, PackedBatch, pack
from veneer.engine.precision import Precision, choose_precision
from veneer.engine.runner import Runner, backbone_of
from veneer.engine.threads import Threads, choose_threads, own_threads

__all__ = [
    "Layout",
    "PackedBatch",
    "Precision",
    "Runner",
    "Threads",
    "backbone_of",
    "choose_kernels",
    "choose_precision",
    "choose_threads",
    "own_kernels",
    "own_threads",
    "pack",
    "use_kernels",
]
