"""The limits of layers and operations, one file per kind of layer."""
