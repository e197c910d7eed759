"""``python -m dist_train`` and ``torchrun -m dist_train``: the same command line as ``dist-train``."""

import sys

from launch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
