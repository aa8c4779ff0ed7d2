"""
`ad-hf train` with FSDP2 on CPU processes, as a test starts it with torchrun.

Accelerate shards on accelerators only, and takes FSDP on CPUs for plain data parallelism. What it does there works on
CPUs over gloo all the same, once it is told that the run is one of FSDP.
"""

import sys

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from ad_hf.cli import main
from ad_hf.training import machine


def sharding_accelerator(**settings):
    """An accelerator whose runs are sharded."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ADBlock"],
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(**settings)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator


machine.Accelerator = sharding_accelerator

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
