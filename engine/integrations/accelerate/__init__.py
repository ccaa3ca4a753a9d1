"""padless under a model of transformers: one line that makes it faster, and one that takes it back.

accelerate.py -> the two lines; transformers_model.py, sentence_models.py -> for a model of either library
families.py, refusals.py -> which classes, and what cannot be taken
adopt.py -> our model of the same class, on the very same parameters
twin.py, watch.py -> that model beside the original, made anew where the original was changed
forward.py, generate.py -> what stands on the original in place of its own
calls.py -> what a call asks for, or why transformers computes it
rows.py, outputs.py, caches.py -> padding as transformers sees it; its outputs; its caches
"""
