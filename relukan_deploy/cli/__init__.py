"""The commands: one thin file each, around one call of the Python API."""
