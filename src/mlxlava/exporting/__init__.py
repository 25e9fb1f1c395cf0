"""Writes learned lamps for programs that are not mlxlava: ONNX graphs, and a web page.

May import rollout, models and playback. Start with portable.py, which takes the numbers out of weights.
Beside it: graphs.py (ONNX, with the example in onnx_example/).
"""
