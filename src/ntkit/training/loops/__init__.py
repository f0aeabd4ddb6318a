"""Recording in other people's loops: a DataLoader with indices, Lightning, transformers."""
