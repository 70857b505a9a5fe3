"""Faces: where they are, their shape, who they are, and what of them is replaced."""
