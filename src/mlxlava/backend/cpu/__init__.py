"""What only CPUs on Linux need: BLAS, the allocator, C++ convolutions, chunks of batches on worker streams.

May import backend. Start with convolution.py.
"""
