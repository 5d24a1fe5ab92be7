"""Pictures: planes, filters."""
