"""`python -m ahpa.registry [KIND ...]`: the same as `ahpa list`."""

import sys

from .listing import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
