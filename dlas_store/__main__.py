"""Entry point of ``python -m dlas_store``, which is the command ``dlas-store``."""

import sys

from dlas_store.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
