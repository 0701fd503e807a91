"""Devices over ssh: copy what is needed, run the torch-free part there, bring the result back.

``docs/remote.md`` is the guide.
"""

from __future__ import annotations
