"""The preprocess service: the public door, decoding and preparing on CPU pods."""
