"""Fused operations: NAME.py is what others call, with its torch reference; NAME_triton.py its GPU kernels.

Two files, because one must load where Triton is missing and the other can't: NAME.py imports NAME_triton.py
when it needs it, and what both need lies in `common.py`.
"""
