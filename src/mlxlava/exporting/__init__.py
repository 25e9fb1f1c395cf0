"""Writes learned lamps for programs that are not mlxlava: ONNX graphs, and a web page.

May import rollout, models and playback. Start with portable.py, which takes the numbers out of weights.
Beside it: graphs.py (ONNX, with the example in onnx_example/) and web_page.py (the page, from the files in
page/: main.js plays, rollout.js rolls the state with the numbers of random.js, webgl.js and wasm.js draw).
"""
