"""
Collect learning histories of every task of a recipe's family. The same as `ad-hf collect`.

    python scripts/collect.py --recipe dark_room --output_dir histories
    python scripts/collect.py --recipe dark_room --output_dir histories_ppo --source.algorithm PPO \
        --source.hyperparameters '{n_steps: 20, batch_size: 500}'
"""

import sys

from ad_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
