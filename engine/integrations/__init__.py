"""padless inside other frameworks: a file for each of them."""
