"""Says what is missing before anything that needs it is imported."""

import sys
from importlib.util import find_spec

missing = [name for name in ("rich", "uvicorn") if find_spec(name) is None]
if missing:
    sys.exit(f'The demo needs {" and ".join(missing)}: pip install "aevents[demo]"')

from aevents.demo.run import main  # noqa: E402 - it imports what may be missing

sys.exit(main())
