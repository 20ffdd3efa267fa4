"""Veneer: LoRA fine-tuning that is exact, fast on small machines, and never silently wrong."""
