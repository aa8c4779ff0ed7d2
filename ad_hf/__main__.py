"""`python -m ad_hf VERB`, which is `ad-hf VERB`; `accelerate launch -m ad_hf train` starts it in each process."""

import sys

from ad_hf.cli import main

if __name__ == "__main__":  # worker processes import this file, too
    sys.exit(main())
