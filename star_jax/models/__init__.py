"""The decoder, its attention, and the families of models. Parameters are plain trees of arrays.

One class, decoder.Decoder, computes every model; spec.DecoderSpec says which. README.md in this folder has what a
change takes: another family, another norm.
"""
