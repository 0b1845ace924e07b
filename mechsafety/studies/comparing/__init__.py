"""Parts of the similarity study (`studies/similarity.py`)."""
