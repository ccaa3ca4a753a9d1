"""padless under a model of transformers: one line that makes it faster, and one that takes it back.

adopt.py -> our model of the same class, on the very same parameters
"""
