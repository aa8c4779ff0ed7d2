"""
Let a model learn the test tasks of a recipe in its context, and report how it did. The same as `ad-hf rollout`.

    python scripts/rollout.py --recipe dark_room --model runs/dark_room/model --dataset histories \
        --output_dir runs/dark_room --num_seeds 5
    python scripts/rollout.py --recipe dark_room --model user/ad-dark-room --output_dir seen --video mp4
"""

import sys

from ad_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["rollout", *sys.argv[1:]]))
