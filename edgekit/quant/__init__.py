"""Quantization arithmetic: grids, ranges, codes, statistics. Nothing here knows graphs."""
