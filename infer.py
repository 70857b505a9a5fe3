"""Dub the tasks of a YAML file: `python infer.py --config configs/infer/example.yaml`."""

import tyro

from unavglip_jax.cli import CLI, infer, main

if __name__ == "__main__":
    main(lambda: tyro.cli(infer, config=CLI))
