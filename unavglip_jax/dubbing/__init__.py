"""Dubbing: a stream of frames and a recording in, a stream of frames out."""
