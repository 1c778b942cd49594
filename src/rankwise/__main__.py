"""``python -m rankwise`` is the command ``rankwise``."""

from rankwise.cli.main import main

main()
