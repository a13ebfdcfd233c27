"""Without a GPU, Triton's kernels run in its interpreter: it is chosen when they are imported, so it is said first."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
