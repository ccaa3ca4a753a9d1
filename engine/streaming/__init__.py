"""Batches through a model without waiting: for vectors and for the answers of tasks.

stream.py -> texts tokenised ahead, planned, packed and run, of an embedding call
prefetch.py -> the threads: one that works ahead, and one for each core
memory.py -> a batch that does not fit, computed in halves
"""
