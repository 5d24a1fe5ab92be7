"""Bytes without loss: levels, streams, files."""
