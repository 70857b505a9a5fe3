"""The networks, one file each; they know nothing of meshes, devices or files."""
