"""Images that are computed, not taken: what networks can be trained on with no download.

Everything here is NumPy alone and follows from the generator that is handed in, so the same seed
gives the same pixels on every machine.
"""
