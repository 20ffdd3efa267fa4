"""How a batch runs fast and exactly: packing, attention, precision. Knows no task."""

from veneer.engine.packing import Layout, PackedBatch, pack
from veneer.engine.precision import Precision, choose_precision
from veneer.engine.runner import Runner, backbone_of

__all__ = ["Layout", "PackedBatch", "Precision", "Runner", "backbone_of", "choose_precision", "pack"]
