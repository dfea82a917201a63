"""The project's container images: built, pushed, saved, by whichever engine is there. `python3 -m images --help`.

Pure standard library: no environment is needed to build images.
"""
