"""How a causal model continues texts: sampling, the key-value cache, batches of different lengths, text as it comes.

It knows a model and its tokenizer; no task, no template, no terminal.
"""

from veneer.engine.generation.answer import Generated
from veneer.engine.generation.generator import Piece, TextGenerator, stop_token_ids
from veneer.engine.generation.running import Memory
from veneer.engine.generation.sampling import Sampling
from veneer.engine.generation.text import StopText, TextPieces

__all__ = [
    "Generated",
    "Memory",
    "Piece",
    "Sampling",
    "StopText",
    "TextGenerator",
    "TextPieces",
    "stop_token_ids",
]
