"""Reading checkpoints: NumPy and the standard library only.

Of the engine it knows the errors, the reader of keys, and what the families of models say of their files.

fetch        a model's name -> a path on this machine
checkpoint   that path -> config, tensors by their Hugging Face names
names        which checkpoint tensors form which weight of the engine, and the check that they are all there
quantised    a matrix as the file stores it, and the numbers it stands for; blocks: the types of GGUF
methods/     quantised safetensors: GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, ModelOpt
safetensors, gguf, translate, kinds, tensor, files   what checkpoint is made of
"""
