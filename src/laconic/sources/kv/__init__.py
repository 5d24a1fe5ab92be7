"""Caches of keys and values: compressed, read and judged."""
