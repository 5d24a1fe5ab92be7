"""Embedding vectors: an index over any codec of vectors."""
