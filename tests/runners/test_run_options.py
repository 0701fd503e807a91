from __future__ import annotations

import json
from pathlib import Path

from edgekit.runners.run_options import NetworkOptions, RunOptions
from edgekit.types import InputSpec


def test_options_survive_the_way_to_the_child() -> None:
    network = NetworkOptions(
        "zoo:lite0", "ema", True, (InputSpec("ids", (1, 50), "int64"), InputSpec("x", (1, 3)))
    )
    options = RunOptions(False, True, Path("cache"), network, Path("here"))
    assert RunOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert RunOptions.from_dict(json.loads(json.dumps(RunOptions().to_dict()))) == RunOptions()
