"""Rooms: the only code that knows a modality, a model library or a foreign format."""
