"""``python -m smask``."""

from .cli.main import main

raise SystemExit(main())
