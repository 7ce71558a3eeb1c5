"""Streaming Conformer transducers, compressed by multi-stage knowledge distillation."""

__version__ = "0.1.0"
