"""Where everybody is. Read at the first event, when all of the fleet has its ports."""

import json
import os
from pathlib import Path

SERVICES: dict[str, str] = json.loads(Path(os.environ["CHAIN_MAP"]).read_text())
