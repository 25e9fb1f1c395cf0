"""Code for CPUs on Linux: BLAS, the allocator, C++ convolutions, chunks of batches on worker streams.

May import backend. Start with convolution.py.
"""
