"""`python train.py --config configs/train/unavglip.yaml data.path=clips mesh.fsdp=4`."""

import tyro

from unavglip_jax.cli import main, train

if __name__ == "__main__":
    main(lambda: tyro.cli(train, prog="train.py"))
