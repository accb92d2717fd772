"""x"""
class Figure1Sweep:
    """Stub."""
