import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

cache = Path(tempfile.gettempdir()) / "unavglip_jax_test_cache"
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    """Tiny networks take longer to compile than to run, here and in processes that tests start."""
    if config.option.markexpr != "full":
        flags = os.environ.get("XLA_FLAGS", "")
        # XLA's older way to compile loops takes a fifth less of a compilation.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
        jax.config.update("jax_disable_most_optimizations", True)
