"""Texts to vectors: what `padless.load` returns for an embedding model.

options.py -> the arguments of a call, checked
encoder.py -> the calls themselves: `encode`, `encode_iter`, `encode_query`, `encode_document`
pooling.py -> from token vectors to one vector a text
long_documents.py -> documents beyond the model's longest text
token_vectors.py -> vectors of every token
quantisation.py -> vectors in fewer bytes
"""
