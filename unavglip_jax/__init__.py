"""Visual dubbing in JAX: UnAvgLip, MuseTalk and the systems beside them."""

__version__ = "0.1.0"
