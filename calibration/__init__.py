"""The calibration sources: one file observes a network in one way.

The folder lies at the top of the repository and is imported as ``edgekit.calibration``. Under any
other name every class would exist twice and the registry's identities would silently break.
"""

from __future__ import annotations

if __name__ != "edgekit.calibration":
    raise ImportError(
        f"this package is 'edgekit.calibration', not '{__name__}': install the project with "
        "`pip install -e .` and import it by its full name",
        name=__name__,
    )
