"""Load a base (local, hub, bundled), name its parts, hash it. Knows no data and no training."""

from veneer.models.hashing import content_hash
from veneer.models.heads import Pooling, head_logits
from veneer.models.load import Base, cast_frozen_, load_base, load_tokenizer
from veneer.models.locate import DEFAULT_BASE, locate

__all__ = [
    "DEFAULT_BASE",
    "Base",
    "Pooling",
    "cast_frozen_",
    "content_hash",
    "head_logits",
    "load_base",
    "load_tokenizer",
    "locate",
]
