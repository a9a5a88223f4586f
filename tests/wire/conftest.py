"""The broken payloads of the strategy's tests, within reach of the tests here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "strategy"))
