"""
Train a model on learning histories. The same as `ad-hf train`, and what `accelerate launch` starts.

    accelerate launch scripts/train.py --recipe dark_room --dataset histories --output_dir runs/dark_room
    accelerate launch scripts/train.py --recipe dark_room --dataset histories --output_dir runs/dark_room \
        --training.learning_rate 3e-4 --training.log_with tensorboard
    torchrun --standalone --nproc_per_node 2 scripts/train.py --recipe dark_room --dataset histories \
        --output_dir runs/dark_room   # several processes on CPUs
"""

import sys

from ad_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
