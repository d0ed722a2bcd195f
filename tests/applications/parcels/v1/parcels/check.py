"""See whether the depots are known; the exit code is 1 where they are not."""

import sys

from parcels.database import ask

if __name__ == "__main__":
    (known,) = ask("SELECT count(*) FROM depots")
    print(f"{known} depots")
    sys.exit(0 if known else 1)
