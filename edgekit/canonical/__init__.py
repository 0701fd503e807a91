"""Rewrites of a captured graph into the forms that quantization knows, without changing values."""
