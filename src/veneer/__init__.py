"""Veneer: LoRA fine-tuning that is exact, fast on small machines, and never silently wrong."""

__version__ = "0.1.0"
