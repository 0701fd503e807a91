"""Training of the zoo's networks: one loop, and one module for each algorithm it runs.

Never imported before a command needs it; torch is required.
"""
