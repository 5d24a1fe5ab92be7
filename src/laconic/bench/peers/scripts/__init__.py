"""Run as `python -m scripts.NAME` inside a peer's environment; what only that environment has is imported in functions."""
