"""DPE attention forward and backward, a few calls for a profiler to look at: python -m tests.bench.run dpe-profile.

Under Nsight Compute it says what limits each kernel (tests/bench/kernels_gpu.sh, part ncu), under compute-sanitizer
whether one reads or writes where it should not (part sanitize).
"""

import argparse

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ml_core.kernels.dpe_attention.op import dpe_attention


def main() -> int:
    """Run them; nothing is measured here."""
    parser = argparse.ArgumentParser(prog="dpe-profile")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ordered", action="store_true", help="the deterministic mode too")
    parser.add_argument("--flash", action="store_true", help="torch's flash attention without bias first")
    args = parser.parse_args()
    for n in args.tokens:
        torch.manual_seed(n)
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        q, k, v = (torch.randn(1, args.heads, n, 64, device=args.device, dtype=dtype) for _ in range(3))
        table = torch.randn(args.heads, 2 * n - 1, device=args.device)
        leaves = [each.requires_grad_() for each in (q, k, v, table)]
        if args.flash:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                functional.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2]).sum().backward()
        for ordered in (False, True) if args.ordered else (False,):
            for causal in (False, True):
                out = dpe_attention(*leaves, causal=causal, deterministic=ordered)
                out.sum().backward()
    if args.device != "cpu":
        torch.cuda.synchronize()
    print("done")
    return 0
