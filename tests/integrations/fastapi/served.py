"""The application for a server in a process of its own.

APPLICATION='{"config": {...}, "effects": PATH, "seconds": 0}' uvicorn tests.integrations.fastapi.served:app
"""

from __future__ import annotations

import json
import logging
import os

from tests.integrations.fastapi.application import make_app

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")

app = make_app(json.loads(os.environ["APPLICATION"]))
