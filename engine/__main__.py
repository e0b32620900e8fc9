"""``python -m engine`` is the command ``troupe``."""

from engine.cli import main

main()
