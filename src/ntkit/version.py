"""The version of ntkit."""

__version__ = "0.1.0"
