"""Models in the formats of other programs, and smaller: GGUF, ONNX, quantised, pruned.

gguf.py      a file for llama.cpp and what is built on it
onnx.py      a graph for ONNX Runtime and what is built on it
quantize.py  int8 and int4 weights
prune.py     fewer weights: by magnitude, by head, by neuron
llama_cpp.py runs a GGUF file, before it has its name
run.py       a trained run in any of the formats; compress.py: pruned, quantised and measured
"""
