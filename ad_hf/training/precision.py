"""Which floating-point format to train in."""

from __future__ import annotations

import time

import torch


def matmul_flops(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 1024, repeats: int = 8) -> float:
    """Floating-point operations per second of square matrix products of a size and dtype."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):  # the first are slower; the best is the machine's
        start = time.perf_counter()
        torch.mm(left, right)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def choose_precision(device: torch.device) -> tuple[str, str]:
    """
    The mixed precision to train with on a device, and why.

    Returns:
        `tuple[str, str]`: `"bf16"` or `"no"`, and a line for people. On CPUs both are timed, since many only emulate
        bfloat16.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if supported else "no"), f"{torch.cuda.get_device_name(device)}, bf16 units: {supported}"
    if device.type != "cpu":
        return "no", f"float32 on {device.type}"
    half, full = matmul_flops(torch.bfloat16), matmul_flops(torch.float32)
    figures = f"matmul {half / 1e9:.0f} GFLOP/s in bfloat16, {full / 1e9:.0f} in float32"
    return ("bf16" if half > 1.3 * full else "no"), figures
