"""Rules of the code base that no single test of a behaviour would notice."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unavglip_jax import assets, params

ROOT = Path(__file__).parent.parent


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def sources(*folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def top(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def inside(modules: set[str]) -> set[str]:
    """Parts of the package: `unavglip_jax.models.unet` -> `models`."""
    return {m.split(".")[1] for m in modules if m.startswith("unavglip_jax.")}


def test_torch_stays_where_it_belongs():
    for path in sources("unavglip_jax", "data", "configs"):
        if "evaluation" not in path.parts:
            assert not top(imports(path)) & {"torch", "diffusers", "transformers", "onnx"}, path


def test_flax_stays_in_models_and_params():
    for path in sources("unavglip_jax", "convert", "data"):
        if "models" not in path.parts and path.name != "params.py":
            assert "flax" not in top(imports(path)), path


def test_media_faces_and_the_input_pipeline_are_free_of_jax():
    files = sources("unavglip_jax/media", "unavglip_jax/faces")
    files += [
        ROOT / f"data/{name}.py" for name in ("augment", "clips", "footage", "pipeline", "settings")
    ]
    for path in files:
        assert not top(imports(path)) & {"jax", "flax"}, path
        assert not inside(imports(path)) & {"models", "params"}, path


def test_who_imports_whom():
    allowed = {
        "models": {"config", "params", "models"},
        "media": {"config", "media"},
        "faces": {"config", "faces"},
        "convert": {"config", "params", "models", "media", "assets", "convert"},
    }
    for path in sources("unavglip_jax", "convert"):
        part = next((name for name in allowed if name in path.relative_to(ROOT).parts), None)
        if part:
            assert inside(imports(path)) <= allowed[part], path
    assert inside(imports(ROOT / "unavglip_jax/config.py")) == set()
    assert inside(imports(ROOT / "unavglip_jax/params.py")) == set()


def test_nothing_unsafe():
    banned = {"pickle.load", "pickle.loads", "yaml.load", "os.system", "os.popen", "eval", "exec"}
    for path in sources("unavglip_jax", "convert", "data"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in banned and given.get("shell") != "True", path
                assert called != "torch.load" or given.get("weights_only") == "True", path


def test_this_jax_computes_what_it_should():
    """jax 0.10.2 fails this on CPU: its fusions got convolutions and reductions wrong, silently."""
    x = jnp.full((32_769, 1), 1.0).at[-1].set(32_768.0)
    rows = jax.jit(jax.vmap(lambda r: jnp.sum((jnp.ones((1, 1)) @ r) ** 2)))(x)
    assert float(rows[-1]) == 32_768.0**2

    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 16, 16, 28), np.float32)
    depthwise = rng.standard_normal((3, 3, 1, 28), np.float32)
    pointwise = rng.standard_normal((1, 1, 28, 28), np.float32)

    def block(x):
        conv = lambda x, w, groups: jax.lax.conv_general_dilated(
            x,
            w,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        x = jax.nn.relu(x)
        x = jax.nn.relu(x + conv(conv(x, depthwise, 28), pointwise, 1))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    with jax.disable_jit():
        expected = block(image)
    np.testing.assert_allclose(jax.jit(block)(image), expected, rtol=1e-4, atol=1e-4)


def test_graph_definitions_can_be_static_arguments_of_jit():
    for name in assets.NETWORKS:
        network, config = assets.network_of(name)
        one, other = (params.abstract(network, config())[0] for _ in range(2))
        assert one == other and hash(one) == hash(other), name
