"""One JSON document for a run: what was measured, and under which conditions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._conditions import conditions, load_average


class Recording:
    """Begins with a run; its conditions are those before it, with the load after it."""

    def __init__(self) -> None:
        self._conditions = conditions()
        self._started = time.perf_counter()

    def save(self, path: Path | None, schema_version: int, content: Mapping[str, Any]) -> None:
        """End the run and write its document.

        Args:
            path: the file, with the folders that it needs; nothing is written if ``None``.
            schema_version: of the document.
            content: what was measured; plain JSON values.
        """
        if path is None:
            return
        ended = {
            "load_average_after": load_average(),
            "seconds": round(time.perf_counter() - self._started, 1),
        }
        document = {
            "schema_version": schema_version,
            "conditions": {**self._conditions, **ended},
            **content,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
