"""What only CPUs on Linux need: C++ that is compiled where it runs, and the convolutions made with it.

May import backend. Start with convolution.py.
"""
