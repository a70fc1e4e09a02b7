"""Fused operations. NAME.py has the interface and the torch reference, NAME_triton.py the GPU kernels.

They are separate files because NAME.py must be importable without Triton; it imports NAME_triton.py on
demand. `common.py` holds what both need.
"""
