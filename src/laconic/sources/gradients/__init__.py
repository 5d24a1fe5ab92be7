"""Gradients: what data-parallel workers send each other while they train."""
