"""Volar: robot-arm policies from demonstrations to a moving arm."""

__version__ = "0.1.0"
