"""``python -m tests.simulation``: see campaign.py, whose functions other processes can import."""

import sys

from tests.simulation.campaign import main

if __name__ == "__main__":
    sys.exit(main())
