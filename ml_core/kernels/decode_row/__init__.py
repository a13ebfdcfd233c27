"""A Llama layer's step for one row in five kernels: what decoding at batch 1 waits for."""
