"""Transformations of a captured graph and its statistics; one pass in each file."""
