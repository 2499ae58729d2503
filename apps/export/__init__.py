"""Export and compression of models: GGUF, ONNX, quantised, pruned.

gguf.py      a file for llama.cpp and compatible programs; gguf_architectures.py: what llama.cpp computes
onnx.py      a graph for ONNX Runtime and compatible programs
quantize.py  int8 and int4 weights
prune.py     fewer weights: by magnitude, by head, by neuron
llama_cpp.py runs a GGUF file to verify it
run.py       a trained run in any of the formats; compress.py: pruned, quantised and measured
"""
