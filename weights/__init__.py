"""Reading checkpoints: NumPy and the standard library only.

Of the engine it knows the errors, the reader of keys, and what the families of models say of their files.

fetch        a model's name -> a path on this machine
checkpoint   that path -> config, tensors by their Hugging Face names
names        which checkpoint tensors form which weight of the engine, and the check that they are all there
safetensors, gguf, translate, quant, tensor, files   what checkpoint is made of
"""
