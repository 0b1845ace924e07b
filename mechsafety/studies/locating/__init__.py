"""Parts of the locality study (`studies/locality.py`)."""
