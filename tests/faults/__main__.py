"""``python -m tests.faults``: see campaign.py."""

import sys

from tests.faults.campaign import main

if __name__ == "__main__":
    sys.exit(main())
