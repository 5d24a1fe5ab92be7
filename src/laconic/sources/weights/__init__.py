"""The room of models: what a compressed model says compared with the original."""

from .judge import Verdict, judge

__all__ = ["Verdict", "judge"]
