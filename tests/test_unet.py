"""The UNet and its adapter against diffusers modules, the golden numbers, and its own cheaper forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from comparing import channels_first, channels_last, randomise, relative_error
from unavglip_jax import params
from unavglip_jax.convert import musetalk, unavglip
from unavglip_jax.convert.state_dict import place
from unavglip_jax.evaluation import torch_networks
from unavglip_jax.models.unet import (
    Attention,
    Condition,
    UNet,
    UNetConfig,
    cache_identity,
    fold_timestep,
    init_identity,
    merge_lora,
)

RANK, CONTEXT, TOKENS = 4, 24, 4
LORA_SCALE, GUIDE_SCALE = 0.8, 0.6


def torch_unet(in_channels=8, adapter=True):
    config = UNetConfig(
        in_channels=in_channels,
        block_out_channels=(32, 64),
        cross_attention=(True, False),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        heads=4,
        norm_num_groups=8,
        lora_rank=RANK if adapter else 0,
        identity="tokens" if adapter else "none",
    )
    return randomise(torch_networks.unet(config, TOKENS, LORA_SCALE, GUIDE_SCALE))


def converted(theirs):
    """Configuration and parameters of a torch UNet, with whatever adapter it has."""
    source = theirs.state_dict()
    base = {key: value for key, value in source.items() if ".processor." not in key}
    config = musetalk.config_of(base, json.loads(theirs.to_json_string()), "the test")
    if len(base) < len(source):
        config = config.replace(lora_rank=RANK, identity="tokens")
    graphdef, shapes = params.abstract(UNet, config)
    return config, graphdef, place(source, shapes)


def inputs(in_channels=8, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    return normal(2, in_channels, 16, 16), normal(2, 50, CONTEXT), normal(2, TOKENS, CONTEXT)


@pytest.fixture(scope="module")
def adapted():
    theirs = torch_unet()
    config, graphdef, weights = converted(theirs)
    latents, audio, tokens = inputs()

    @jax.jit
    def ours(weights, x, audio, tokens):
        return params.bind(graphdef, weights)(x, 0, audio, tokens, LORA_SCALE, GUIDE_SCALE)

    return theirs, config, weights, ours, (latents, audio, tokens)


def run(config, weights, latents, audio, tokens, *scales):
    graphdef, shapes = params.abstract(UNet, config)
    assert shapes.keys() == weights.keys()

    @jax.jit
    def forward(weights, x, audio, tokens):
        return params.bind(graphdef, weights)(x, 0, audio, tokens, *scales)

    return np.asarray(forward(weights, channels_last(latents), audio, tokens))


def test_adapter_forward_and_gradients_equal_diffusers(adapted):
    theirs, _, weights, ours, (latents, audio, tokens) = adapted
    context = torch.tensor(np.concatenate([audio, tokens], axis=1))
    target = np.random.default_rng(1).standard_normal((2, 4, 16, 16), np.float32)

    out = theirs(torch.tensor(latents), 0, context).sample
    ((out - torch.tensor(target)) ** 2).mean().backward()
    trained, frozen = params.split("/processor/", weights)

    def loss(trained):
        out = ours(trained | frozen, channels_last(latents), audio, tokens)
        return jnp.mean((out - channels_last(target)) ** 2), out

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    assert relative_error(channels_first(found), out.detach()) < 1e-5
    _, shapes = params.abstract(UNet, adapted[1])
    expected = place(
        {name: p.grad for name, p in theirs.named_parameters() if ".processor." in name},
        {name: shapes[name] for name in trained},
    )
    assert len(expected) == 4 * 18  # transformers in down, up (2) and mid: 8 + 10 tensors each
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected[name]) < 1e-4, name


@pytest.mark.parametrize("in_channels", [9, 12, 13])
def test_base_equals_diffusers_with_other_inputs(in_channels):
    theirs = torch_unet(in_channels, adapter=False)
    config, _, weights = converted(theirs)
    latents, audio, _ = inputs(in_channels)
    with torch.no_grad():
        expected = theirs(torch.tensor(latents), 0, torch.tensor(audio)).sample
    assert config.in_channels == in_channels
    assert (
        relative_error(channels_first(run(config, weights, latents, audio, None)), expected) < 1e-5
    )


def test_other_timesteps_equal_diffusers():
    theirs = torch_unet(adapter=False)
    _, graphdef, weights = converted(theirs)
    latents, audio, _ = inputs()
    steps = np.array([3, 801])
    with torch.no_grad():
        expected = theirs(torch.tensor(latents), torch.tensor(steps), torch.tensor(audio)).sample
    forward = jax.jit(lambda w, x, t, a: params.bind(graphdef, w)(x, t, a))
    ours = forward(weights, channels_last(latents), steps, audio)
    assert relative_error(channels_first(ours), expected) < 1e-5


def test_cheaper_forms_equal_the_plain_one(adapted):
    _, config, weights, ours, (latents, audio, tokens) = adapted
    tokens = np.repeat(tokens[:1], 2, axis=0)  # one video: every frame sees the same person
    plain = np.asarray(ours(weights, channels_last(latents), audio, tokens))
    merged = merge_lora(weights, config, LORA_SCALE)
    folded = fold_timestep(weights, config)
    cached = cache_identity(weights, config, jnp.asarray(tokens[:1]))
    everything = cache_identity(*fold_timestep(*merged), jnp.asarray(tokens[:1]))
    # After merging, lora_scale must be without effect; the other forms still need it.
    for form, form_tokens, scale in (
        (merged, tokens, 123.0),
        (folded, tokens, LORA_SCALE),
        (cached, None, LORA_SCALE),
        (everything, None, 123.0),
    ):
        found = run(form[1], form[0], latents, audio, form_tokens, scale, GUIDE_SCALE)
        assert relative_error(found, plain) < 1e-5
    assert len(everything[0]) < len(weights)


def test_scales_act_as_the_paper_says(adapted):
    _, config, weights, _, (latents, audio, tokens) = adapted
    base = params.split("/processor/", weights)[1]
    base_config = config.replace(lora_rank=0, identity="none")
    musetalk_alone = run(base_config, base, latents, audio, None)
    both_off = run(config, weights, latents, audio, tokens, 0.0, 0.0)
    guide_off = run(config, weights, latents, audio, tokens, 1.0, 0.0)
    assert relative_error(both_off, musetalk_alone) < 1e-5
    assert relative_error(guide_off, musetalk_alone) > 1e-2  # LoRA stays on


def test_identity_starts_as_a_copy_of_the_audio_projections():
    config = UNetConfig(
        block_out_channels=(8, 8), cross_attention=(True, False), layers_per_block=1, heads=2,
        cross_attention_dim=6, norm_num_groups=4, lora_rank=2, identity="tokens",
    )  # fmt: skip
    weights = init_identity(params.init(UNet, config, jax.random.key(0)))
    attn2 = "mid_block/attentions/0/transformer_blocks/0/attn2"
    copy, source = weights[f"{attn2}/processor/to_v_ip/kernel"], weights[f"{attn2}/to_v/kernel"]
    assert (copy == source).all()
    ups = [leaf for name, leaf in weights.items() if name.endswith("_lora/up/kernel")]
    assert ups and not any(leaf.any() for leaf in ups)


def test_bfloat16_stays_near_float32(adapted):
    _, config, weights, ours, (latents, audio, tokens) = adapted
    plain = np.asarray(ours(weights, channels_last(latents), audio, tokens))
    half = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    _, shapes = params.abstract(UNet, half)
    found = run(half, params.cast(weights, shapes), latents, audio, tokens, LORA_SCALE, GUIDE_SCALE)
    error = relative_error(found, plain)
    print(f"bfloat16 against float32: {error:.1e}")
    assert found.dtype == np.float32
    assert 1e-4 < error < 3e-2
    kept = {name.rsplit("/", 1)[1] for name, s in shapes.items() if s.dtype == jnp.float32}
    assert "scale" in kept  # norms
    assert all(s.dtype == jnp.float32 for name, s in shapes.items() if "/processor/" in name)


def test_bad_inputs_are_named(adapted):
    _, config, _, _, (_, audio, tokens) = adapted
    build = lambda: UNet(config, rngs=params.KeyStream(jax.random.key(0)))
    with pytest.raises(ValueError, match="multiples of 2"):
        jax.eval_shape(lambda: build()(jnp.zeros((1, 15, 16, 8)), 0, audio, tokens))
    with pytest.raises(ValueError, match="identity_tokens"):
        jax.eval_shape(lambda: build()(jnp.zeros((1, 16, 16, 8)), 0, audio))


def test_full_size_has_the_published_number_of_parameters():
    config = UNetConfig(lora_rank=128, identity="tokens")
    _, shapes = params.abstract(UNet, config)
    adapter, base = params.split("/processor/", shapes)
    assert (params.count(base), len(base)) == (849_947_844, 686)
    assert (params.count(adapter), len(adapter)) == (33_521_664, 288)
    names = unavglip.processors(config)
    assert len(names) == 32
    assert {
        name.split("/processor/")[0].replace("/", ".") + ".processor" for name in adapter
    } == set(names)


def recipe(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The golden numbers' weights: 0.02 sin(0.37 k + i) for the i-th tensor."""
    return {
        name: torch.tensor(0.02 * np.sin(0.37 * np.arange(np.prod(shape)) + i))
        .float()
        .reshape(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def wave(c: float, *shape: int) -> np.ndarray:
    k = np.arange(np.prod(shape), dtype=np.float32)
    return np.sin(np.float32(c) * k).reshape(shape)


@pytest.mark.parametrize(
    ("cross", "scale", "first", "total", "squares"),
    [
        (False, 1, [-0.01509199, -0.01885501, -0.02004951, -0.01849197], 0.16812556, 1.15975758),
        (True, 0, [-0.01517968, -0.01884508, -0.01995708, -0.01839328], 0.16818536, 1.15973860),
        (True, 0.25, [-0.01504027, -0.01888382, -0.02012650, -0.01855566], 0.16669029, 1.15980971),
        (True, 1, [-0.01462205, -0.01900003, -0.02063476, -0.01904279], 0.16220539, 1.16142120),
    ],
)
def test_attention_gives_the_golden_numbers(cross, scale, first, total, squares):
    context = 384 if cross else 320
    config = UNetConfig(lora_rank=128, identity="tokens")
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}

    def build(config, rngs):
        identity = "tokens" if cross else "none"
        return Attention(320, context, config, identity=identity, rngs=rngs, **kw)

    graphdef, shapes = params.abstract(build, config)
    source = recipe(
        {"to_q.weight": (320, 320), "to_k.weight": (320, context), "to_v.weight": (320, context),
         "to_out.0.weight": (320, 320), "to_out.0.bias": (320,)}
    )  # fmt: skip
    processor = {}
    for name, width in (("q", 320), ("k", context), ("v", context), ("out", 320)):
        processor[f"processor.to_{name}_lora.down.weight"] = (128, width)
        processor[f"processor.to_{name}_lora.up.weight"] = (320, 128)
    if cross:
        processor |= {f"processor.to_{name}_ip.weight": (320, context) for name in "kv"}
    weights = place(source | recipe(processor), shapes)
    x = wave(0.11, 2, 9, 320)
    tokens = wave(0.13, 2, 54, 384)
    audio, identity = (tokens[:, :50], tokens[:, 50:]) if cross else (x, None)
    out = params.bind(graphdef, weights)(x, audio, Condition(audio, identity, 1.0, scale))
    out = np.asarray(out, np.float64)
    np.testing.assert_allclose(out[0, 0, :4], first, atol=2e-7)
    np.testing.assert_allclose([out.sum(), (out**2).sum()], [total, squares], rtol=2e-5)
